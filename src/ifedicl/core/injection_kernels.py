"""Triton kernels of the injection: one launch forwards and one backwards for each write, subspace included.

Imported only where :mod:`ifedicl.core.fused_injection` runs them: on a GPU with Triton, or in Triton's interpreter in tests.
The formula is :func:`ifedicl.core.injection.inject`'s, in float32 whatever the dtype of the write, rounded once at its end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # numbers that a program of the paper's form takes at once
_ROWS, _CHUNK, _NARROWEST = 16, 128, 16  # of a tile with the subspace: tokens, columns; `tl.dot` takes no side below 16


@triton.jit  # type: ignore[untyped-decorator]
def _scaled_forward(write, packed, vector, result, numbers, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """``β·y + λ·v`` of ``BLOCK`` numbers."""
    at = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numbers
    y = tl.load(write + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(vector + at % width, mask=inside, other=0.0)
    total = y * tl.load(packed + 1) + v * tl.load(packed)
    tl.store(result + at, total.to(result.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _scaled_backward(gradient, write, packed, vector, for_write, partials, numbers, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """``β·g``, and of this program's share of the numbers ``Σ g·v`` and ``Σ g·y``."""
    program = tl.program_id(0)
    scale = tl.load(packed + 1)
    for_context = tl.zeros((BLOCK,), dtype=tl.float32)
    for_activation = tl.zeros((BLOCK,), dtype=tl.float32)
    for tile in range(program, tl.cdiv(numbers, BLOCK), tl.num_programs(0)):
        at = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < numbers
        g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(write + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(vector + at % width, mask=inside, other=0.0)
        for_context += g * v
        for_activation += g * y
        tl.store(for_write + at, (g * scale).to(for_write.dtype.element_ty), mask=inside)
    tl.store(partials + program * 2, tl.sum(for_context))
    tl.store(partials + program * 2 + 1, tl.sum(for_activation))


@triton.jit  # type: ignore[untyped-decorator]
def _subspace_forward(  # type: ignore[no-untyped-def]
    write, packed, vector, basis, result, rows, width,
    RANK: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """``β·y + λ·v + Uᵀ Γ U y`` of ``ROWS`` tokens."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = row[:, None].to(tl.int64) * width
    rank = tl.arange(0, WIDE)
    within = tl.zeros((ROWS, WIDE), dtype=tl.float32)
    for start in range(0, width, CHUNK):
        column = start + tl.arange(0, CHUNK)
        inside = (row[:, None] < rows) & (column[None, :] < width)
        y = tl.load(write + begin + column[None, :], mask=inside, other=0.0).to(tl.float32)
        known = (rank[None, :] < RANK) & (column[:, None] < width)
        directions = tl.load(basis + rank[None, :] * width + column[:, None], mask=known, other=0.0)
        within += tl.dot(y, directions, input_precision="ieee")
    square = (rank[:, None] < RANK) & (rank[None, :] < RANK)
    core = tl.load(packed + 2 + rank[None, :] * RANK + rank[:, None], mask=square, other=0.0)  # Γᵀ
    inner = tl.dot(within, core, input_precision="ieee")
    context_scale, activation_scale = tl.load(packed), tl.load(packed + 1)
    for start in range(0, width, CHUNK):
        column = start + tl.arange(0, CHUNK)
        inside = (row[:, None] < rows) & (column[None, :] < width)
        y = tl.load(write + begin + column[None, :], mask=inside, other=0.0).to(tl.float32)
        v = tl.load(vector + column, mask=column < width, other=0.0)
        known = (rank[:, None] < RANK) & (column[None, :] < width)
        directions = tl.load(basis + rank[:, None] * width + column[None, :], mask=known, other=0.0)
        total = y * activation_scale + (v * context_scale)[None, :]
        total += tl.dot(inner, directions, input_precision="ieee")
        tl.store(result + begin + column[None, :], total.to(result.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _subspace_backward(  # type: ignore[no-untyped-def]
    gradient, write, packed, vector, basis, for_write, partials, rows, width,
    RANK: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """``β·g + Uᵀ Γᵀ U g``, and of this program's tokens ``Σ g·v``, ``Σ g·y`` and ``Σ (U g)(U y)ᵀ``."""
    program, rank = tl.program_id(0), tl.arange(0, WIDE)
    activation_scale = tl.load(packed + 1)
    square = (rank[:, None] < RANK) & (rank[None, :] < RANK)
    place = rank[:, None] * RANK + rank[None, :]
    core = tl.load(packed + 2 + place, mask=square, other=0.0)
    for_context = tl.zeros((ROWS, CHUNK), dtype=tl.float32)
    for_activation = tl.zeros((ROWS, CHUNK), dtype=tl.float32)
    for_core = tl.zeros((WIDE, WIDE), dtype=tl.float32)
    for block in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = block * ROWS + tl.arange(0, ROWS)
        begin = row[:, None].to(tl.int64) * width
        within = tl.zeros((ROWS, WIDE), dtype=tl.float32)
        inner = tl.zeros((ROWS, WIDE), dtype=tl.float32)
        for start in range(0, width, CHUNK):
            column = start + tl.arange(0, CHUNK)
            inside = (row[:, None] < rows) & (column[None, :] < width)
            g = tl.load(gradient + begin + column[None, :], mask=inside, other=0.0).to(tl.float32)
            y = tl.load(write + begin + column[None, :], mask=inside, other=0.0).to(tl.float32)
            v = tl.load(vector + column, mask=column < width, other=0.0)
            known = (rank[None, :] < RANK) & (column[:, None] < width)
            directions = tl.load(basis + rank[None, :] * width + column[:, None], mask=known, other=0.0)
            within += tl.dot(y, directions, input_precision="ieee")
            inner += tl.dot(g, directions, input_precision="ieee")
            for_context += g * v[None, :]
            for_activation += g * y
        for_core += tl.dot(tl.trans(inner), within, input_precision="ieee")
        through = tl.dot(inner, core, input_precision="ieee")
        for start in range(0, width, CHUNK):
            column = start + tl.arange(0, CHUNK)
            inside = (row[:, None] < rows) & (column[None, :] < width)
            g = tl.load(gradient + begin + column[None, :], mask=inside, other=0.0).to(tl.float32)
            known = (rank[:, None] < RANK) & (column[None, :] < width)
            directions = tl.load(basis + rank[:, None] * width + column[None, :], mask=known, other=0.0)
            total = g * activation_scale + tl.dot(through, directions, input_precision="ieee")
            tl.store(for_write + begin + column[None, :], total.to(for_write.dtype.element_ty), mask=inside)
    mine = partials + program * (2 + RANK * RANK)
    tl.store(mine, tl.sum(tl.sum(for_context, axis=1), axis=0))
    tl.store(mine + 1, tl.sum(tl.sum(for_activation, axis=1), axis=0))
    tl.store(mine + 2 + place, for_core, mask=square)


def forward(write: Tensor, packed: Tensor, vector: Tensor, basis: Tensor | None) -> Tensor:
    """As :func:`ifedicl.core.fused_injection.forward`; one launch."""
    width, result = write.shape[-1], torch.empty_like(write)
    if basis is None:
        grid = (triton.cdiv(write.numel(), _BLOCK),)
        _scaled_forward[grid](write, packed, vector, result, write.numel(), width, BLOCK=_BLOCK)
        return result
    rows = write.numel() // width
    _subspace_forward[(triton.cdiv(rows, _ROWS),)](
        write, packed, vector, basis, result, rows, width,
        RANK=len(basis), WIDE=_wide(len(basis)), ROWS=_ROWS, CHUNK=_CHUNK,
    )  # fmt: skip
    return result


def backward(
    gradient: Tensor, write: Tensor, packed: Tensor, vector: Tensor, basis: Tensor | None, programs: int
) -> tuple[Tensor, Tensor]:
    """As :func:`ifedicl.core.fused_injection.backward`; one launch."""
    width, for_write = write.shape[-1], torch.empty_like(write)
    partials = torch.empty(programs, packed.shape[-1], dtype=torch.float32, device=write.device)
    if basis is None:
        _scaled_backward[(programs,)](gradient, write, packed, vector, for_write, partials, write.numel(), width, BLOCK=_BLOCK)
        return for_write, partials
    _subspace_backward[(programs,)](
        gradient, write, packed, vector, basis, for_write, partials, write.numel() // width, width,
        RANK=len(basis), WIDE=_wide(len(basis)), ROWS=_ROWS, CHUNK=_CHUNK,
    )  # fmt: skip
    return for_write, partials


def _wide(rank: int) -> int:
    return max(_NARROWEST, int(triton.next_power_of_2(rank)))
