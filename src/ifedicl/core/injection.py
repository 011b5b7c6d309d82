"""The one injection formula (paper Eq. 5), and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def inject(write: Tensor, vector: Tensor, context_scale: Tensor, activation_scale: Tensor) -> Tensor:
    """``β·y + λ·v`` at every token.

    Differentiable in ``write`` and the two scales; the gradients of the scales are float32, whatever the model's dtype is.

    Args:
        write: ``y``, ``(..., d)``, what attention or MLP adds to the residual stream.
        vector: ``v``, ``(d,)``, float32, on the device of ``write``: the global context vector of this write.
        context_scale: ``λ``, a float32 scalar on the CPU (reading it there does not wait for a GPU).
        activation_scale: ``β``, likewise.
    """
    result: Tensor = _Inject.apply(write, vector, context_scale, activation_scale)  # type: ignore[no-untyped-call]
    return result


class _Inject(torch.autograd.Function):
    """One pass over the write forwards, and a dot product backwards.

    Plain autograd would make a product of the size of the write for each scale just to sum it up.
    """

    @staticmethod
    def forward(ctx: Any, write: Tensor, vector: Tensor, context_scale: Tensor, activation_scale: Tensor) -> Tensor:
        ctx.save_for_backward(write, vector, activation_scale)
        # The float32 vector promotes the sum to float32, rounded once at its end. Between bfloat16 tensors ``alpha`` itself
        # would be rounded on a CPU, and a β of 1.003 be 1.
        return torch.add(vector * float(context_scale), write, alpha=float(activation_scale)).to(write.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
        write, vector, activation_scale = ctx.saved_tensors
        for_write = gradient * float(activation_scale) if ctx.needs_input_grad[0] else None
        for_context = for_activation = None
        if ctx.needs_input_grad[2]:
            for_context = (gradient.flatten(0, -2).sum(dim=0, dtype=torch.float32) @ vector).cpu()
        if ctx.needs_input_grad[3]:
            for_activation = torch.dot(gradient.flatten().float(), write.flatten().float()).cpu()
        return for_write, None, for_context, for_activation
