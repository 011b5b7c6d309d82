"""The injection formula (paper Eq. 5, and beyond it the subspace) and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def inject(
    write: Tensor,
    vector: Tensor,
    context_scale: Tensor,
    activation_scale: Tensor,
    basis: Tensor | None = None,
    core: Tensor | None = None,
) -> Tensor:
    """``β·y + λ·v + Uᵀ Γ U y`` at every token; without a basis the paper's ``β·y + λ·v``.

    Differentiable in ``write``, the two scales and the core. The gradients of the coefficients are float32 for every model
    dtype.

    Args:
        write: ``y``, ``(..., d)``: what attention or MLP adds to the residual stream.
        vector: ``v``, ``(d,)``: the global context vector of this write; float32 on the device of ``write``.
        context_scale: ``λ``, a float32 scalar on the CPU (reading it there does not wait for a GPU).
        activation_scale: ``β``, a float32 scalar on the CPU.
        basis: ``U``, ``(r, d)`` float32 on the device of ``write``.
        core: ``Γ``, ``(r, r)`` float32 on the device of ``write``; given with a basis.
    """
    result: Tensor = _Inject.apply(write, vector, context_scale, activation_scale, basis, core)  # type: ignore[no-untyped-call]
    return result


class _Inject(torch.autograd.Function):
    """One pass over the write forwards and a dot product backwards.

    Plain autograd would build a product as large as the write for each scale, only to sum it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        write: Tensor,
        vector: Tensor,
        context_scale: Tensor,
        activation_scale: Tensor,
        basis: Tensor | None,
        core: Tensor | None,
    ) -> Tensor:
        # The float32 vector promotes the sum to float32; it is rounded once, at its end. Between bfloat16 tensors a CPU would
        # round ``alpha`` itself: a β of 1.003 would be 1.
        total = torch.add(vector * float(context_scale), write, alpha=float(activation_scale))
        within = None
        if basis is not None and core is not None:
            within = write.float() @ basis.T  # (..., r)
            total = total + (within @ core.T) @ basis
        ctx.save_for_backward(write, vector, activation_scale, basis, core, within)
        return total.to(write.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        write, vector, activation_scale, basis, core, within = ctx.saved_tensors
        for_write = gradient * float(activation_scale) if ctx.needs_input_grad[0] else None
        for_context = for_activation = for_core = None
        if ctx.needs_input_grad[2]:
            for_context = (gradient.flatten(0, -2).sum(dim=0, dtype=torch.float32) @ vector).cpu()
        if ctx.needs_input_grad[3]:
            for_activation = torch.dot(gradient.flatten().float(), write.flatten().float()).cpu()
        if basis is not None:
            inner = gradient.float() @ basis.T  # (..., r)
            if ctx.needs_input_grad[5]:
                for_core = inner.flatten(0, -2).T @ within.flatten(0, -2)
            if for_write is not None:
                for_write = (for_write + (inner @ core) @ basis).to(write.dtype)
        return for_write, None, for_context, for_activation, None, for_core


def fold(
    weight: Tensor,
    bias: Tensor | None,
    vector: Tensor,
    context_scale: float,
    activation_scale: float,
    basis: Tensor | None = None,
    core: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Float32 weight and bias of a linear layer that gives what :func:`inject` makes of the given layer's output.

    ``W ← (βI + UᵀΓU) W`` and ``b ← (βI + UᵀΓU) b + λv``: exact, since the injection is affine in the write. ``weight`` is
    ``(d, n)``, ``bias`` ``(d,)`` or None; the other arguments are those of :func:`inject`.
    """

    def changed(values: Tensor) -> Tensor:
        result = activation_scale * values
        return result if basis is None or core is None else result + basis.T @ (core @ (basis @ values))

    shift = torch.zeros_like(vector) if bias is None else changed(bias.float())
    return changed(weight.float()), shift + context_scale * vector
