"""The injection's formula in float64 with torch's own gradients, and what a fused one must share with it."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Given: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""Gradient of the result, write, packed numbers, vector and basis."""
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def drawn(shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> Given:
    """Random ones."""
    draw, width = torch.Generator().manual_seed(7), shape[-1]
    gradient, write = (torch.randn(*shape, generator=draw).to(dtype) for _ in range(2))
    packed, vector = torch.randn(2 + rank**2, generator=draw), torch.randn(width, generator=draw)
    basis = torch.linalg.qr(torch.randn(width, rank, generator=draw))[0].T.contiguous() if rank else None
    return gradient, write, packed, vector, basis


def assert_equals_oracle(found: tuple[Tensor, Tensor, Tensor], given: Given) -> None:
    """Check result, gradient of the write, and the rows whose sum is that of the packed numbers."""
    gradient, write, packed, vector, basis = given
    y, numbers = write.double().requires_grad_(), packed.double().requires_grad_()
    result = numbers[1] * y + numbers[0] * vector.double()
    if basis is not None:
        core = numbers[2:].view(len(basis), len(basis))
        result = result + y @ basis.double().T @ core.T @ basis.double()
    for_write, for_packed = torch.autograd.grad(result, (y, numbers), gradient.double())
    assert found[0].dtype == found[1].dtype == write.dtype
    _assert_close(found[0], result.detach(), write.dtype)
    _assert_close(found[1], for_write, write.dtype)
    _assert_close(found[2].sum(dim=0), for_packed, torch.float32)


def _assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert float((found.double() - expected).abs().max()) <= CLOSE[dtype] * float(expected.abs().max())
