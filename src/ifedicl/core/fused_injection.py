"""The injection as one operation forwards and one backwards for each write, whatever its form.

On a GPU with Triton these are kernels (:mod:`ifedicl.core.injection_kernels`); on any other device the plain formula. Both are
tested against :func:`ifedicl.core.injection.inject`. The numbers of a write are packed in one row, ``(2 + r²,)`` float32: λ, β
and Γ. Its gradient is left in :data:`PARTS` partial sums, which are added for all writes at once.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ifedicl.core.injection import Change, Maps, gradients, injected_with_within, plain_changes

PARTS = 128
"""Partial sums of a write's gradient; on a GPU as many programs, about one for each of its processors."""
LARGEST_RANK = 32
"""Of a subspace whose Γ fits the registers of a program."""

_log = logging.getLogger(__name__)
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # of the check: relative to the largest number


def changes(vectors: Tensor, scales: Tensor, basis: Tensor | None, core: Tensor | None) -> list[Change]:
    """:func:`~ifedicl.core.injection.plain_changes` in fewer launches, for ranks up to :data:`LARGEST_RANK`."""
    packed = scales if core is None else torch.cat([scales, core.flatten(1)], dim=1)
    # Each write adds to rows of its own; the gradient of the expansion sums them, for all writes in one operation.
    rows = packed.unsqueeze(1).expand(-1, PARTS, -1).unbind()
    bases = [None] * len(rows) if basis is None else basis.unbind()
    return [partial(_change, *of_write) for of_write in zip(rows, vectors.unbind(), bases, strict=True)]


def _change(rows: Tensor, vector: Tensor, basis: Tensor | None, write: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        there: Tensor = forward(write.contiguous(), rows[0], vector, basis)
        return there
    result: Tensor = _Fused.apply(write, rows, vector, basis)  # type: ignore[no-untyped-call]
    return result


class _Fused(torch.autograd.Function):
    """Gradients of the write and of the packed rows."""

    @staticmethod
    def forward(ctx: Any, write: Tensor, rows: Tensor, vector: Tensor, basis: Tensor | None) -> Tensor:
        write = write.contiguous()
        ctx.save_for_backward(write, rows, vector, basis)
        result: Tensor = forward(write, rows[0], vector, basis)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        write, rows, vector, basis = ctx.saved_tensors
        return *backward(gradient.contiguous(), write, rows[0], vector, basis), None, None


@torch.library.custom_op("ifedicl::inject", mutates_args=())
def forward(write: Tensor, packed: Tensor, vector: Tensor, basis: Tensor | None) -> Tensor:
    """``β·y + λ·v + Uᵀ Γ U y`` of a contiguous write ``(..., d)``.

    Args:
        write: ``y``.
        packed: ``(2 + r²,)`` float32: λ, β and Γ by rows.
        vector: ``v``, ``(d,)`` float32.
        basis: ``U``, ``(r, d)`` float32; None without a subspace.
    """
    return injected_with_within(write, packed[0] * vector, packed[1], _maps(packed, basis))[0]


@forward.register_fake
def _(write: Tensor, *_others: Tensor | None) -> Tensor:
    return torch.empty_like(write)


@forward.register_kernel("cuda")
def _(write: Tensor, packed: Tensor, vector: Tensor, basis: Tensor | None) -> Tensor:
    from ifedicl.core import injection_kernels

    return injection_kernels.forward(write, packed, vector, basis)


def _maps(packed: Tensor, basis: Tensor | None) -> Maps | None:
    if basis is None:
        return None
    (maps,) = Maps.of(basis.unsqueeze(0), packed[2:].view(1, len(basis), len(basis)))
    return maps


@torch.library.custom_op("ifedicl::inject_backward", mutates_args=())
def backward(gradient: Tensor, write: Tensor, packed: Tensor, vector: Tensor, basis: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of the write, as large as it, and of the packed numbers in :data:`PARTS` rows whose sum it is.

    Args:
        gradient: of the result, contiguous.
        write: ``y``, as given to :func:`forward`.
        packed: as there.
        vector: as there.
        basis: as there.
    """
    maps = _maps(packed, basis)
    within = None if maps is None else write.reshape(-1, write.shape[-1]).to(torch.float32) @ maps.basis
    for_write, for_shift, for_activation, for_core = gradients(gradient, write, packed[1], within, maps)
    assert for_write is not None
    assert for_shift is not None
    assert for_activation is not None
    rows = packed.new_zeros(PARTS, len(packed))
    rows[0, 0], rows[0, 1] = for_shift @ vector, for_activation
    if for_core is not None:
        rows[0, 2:] = for_core.flatten()
    return for_write, rows


@backward.register_fake
def _(_gradient: Tensor, write: Tensor, packed: Tensor, *_others: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(write), packed.new_empty(PARTS, packed.shape[-1])


@backward.register_kernel("cuda")
def _(gradient: Tensor, write: Tensor, packed: Tensor, vector: Tensor, basis: Tensor | None) -> tuple[Tensor, Tensor]:
    from ifedicl.core import injection_kernels

    return injection_kernels.backward(gradient, write, packed, vector, basis, PARTS)


@cache
def is_sound(device: torch.device, width: int, dtype: torch.dtype, rank: int) -> bool:
    """Whether a device's kernels give the plain formula's numbers, forwards and backwards; checked once a process.

    Whatever else happens (no Triton, a kernel that does not compile or run, other numbers) gives one warning: the plain formula
    is used then.
    """
    if rank > LARGEST_RANK:
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad():  # whoever asks first may want no gradients
            fault = _fault(device, width, dtype, rank)
    except Exception as error:  # a compiler's and a driver's errors have many types
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if fault:
        _log.warning('the fused injection is not used on %s (%s); model.launches = "plain" leaves it out', device, fault)
    return not fault


def _fault(device: torch.device, width: int, dtype: torch.dtype, rank: int) -> str:
    """What differs between fused and plain on made-up numbers; empty: nothing."""
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(device)

    write, gradient = drawn(3, 37, width).to(dtype), drawn(3, 37, width).to(dtype)
    vectors, scales = drawn(1, width), drawn(1, 2)
    basis, core = (drawn(1, rank, width) / width**0.5, drawn(1, rank, rank)) if rank else (None, None)
    found = list[list[Tensor]]()
    for of in (changes, plain_changes):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in (write, scales, core) if leaf is not None]
        (change,) = of(vectors, leaves[1], basis, leaves[2] if rank else None)
        result = change(leaves[0])
        found.append([result.detach(), *torch.autograd.grad(result, leaves, gradient)])
    for name, fused, plain in zip(("result", "write", "scales", "core"), *found, strict=False):
        largest = float(plain.abs().max())
        if not float((fused - plain).abs().max()) <= _CLOSE[dtype] * largest:
            return f"{name} differ from the plain formula's"
    return ""
