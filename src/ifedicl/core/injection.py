"""The injection formula (paper Eq. 5, and beyond it the subspace) and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Change: TypeAlias = Callable[[Tensor], Tensor]
"""Gives what replaces a write, ``(..., d)``."""


class Maps(NamedTuple):
    """What the subspace of one write needs beside Γ: made once a pass for all writes, not at each write.

    Attributes:
        basis: ``Uᵀ``, ``(d, r)`` float32.
        forwards: ``ΓᵀU``, ``(r, d)`` float32.
        backwards: ``ΓU``, ``(r, d)`` float32, for the gradient.
    """

    basis: Tensor
    forwards: Tensor
    backwards: Tensor

    @classmethod
    def of(cls, basis: Tensor, core: Tensor) -> list[Self]:
        """The maps of ``W`` writes with bases ``U``, ``(W, r, d)``, and cores ``Γ``, ``(W, r, r)``."""
        core = core.detach()  # its gradient is :func:`inject`'s
        together = basis.mT, core.mT @ basis, core @ basis
        return [cls(*of_write) for of_write in zip(*(maps.unbind() for maps in together), strict=True)]


def inject(
    write: Tensor, shift: Tensor, activation_scale: Tensor, core: Tensor | None = None, maps: Maps | None = None
) -> Tensor:
    """``β·y + λ·v + Uᵀ Γ U y`` at every token; without a core the paper's ``β·y + λ·v``.

    Differentiable in ``write``, the shift, the scale and the core. Their gradients are float32 for every model dtype. The host
    reads nothing: all arguments are on one device, and the formula takes as few operations as plain torch allows.

    Args:
        write: ``y``, ``(..., d)``: what attention or MLP adds to the residual stream.
        shift: ``λ·v``, ``(d,)`` float32: the scaled global context vector of this write.
        activation_scale: ``β``, a float32 scalar.
        core: ``Γ``, ``(r, r)`` float32.
        maps: of this core; given with it.
    """
    if not torch.is_grad_enabled():
        return injected_with_within(write, shift, activation_scale, maps)[0]
    result: Tensor = _Inject.apply(write, shift, activation_scale, core, maps)  # type: ignore[no-untyped-call]
    return result


def injected_with_within(
    write: Tensor, shift: Tensor, activation_scale: Tensor, maps: Maps | None
) -> tuple[Tensor, Tensor | None]:
    """The result in the dtype of the write, and ``U y``, ``(tokens, r)`` float32, where there is a subspace."""
    # Float32 arguments make the sum float32. It is rounded once, at its end: in bfloat16 a β of 1.003 would be 1.
    if maps is None:
        return torch.addcmul(shift, write, activation_scale, out=_other(write)), None
    total = torch.addcmul(shift, write, activation_scale)
    rows = total.view(-1, write.shape[-1])
    within = write.reshape(rows.shape).to(torch.float32) @ maps.basis
    rows.addmm_(within, maps.forwards)
    return total.to(write.dtype), within


def _other(like: Tensor) -> Tensor | None:
    """Where a float32 result is put that is rounded on its way; None: it is not rounded."""
    return None if like.dtype == torch.float32 else torch.empty_like(like)


class _Inject(torch.autograd.Function):
    """One pass over the write forwards and a dot product backwards.

    Plain autograd would build a product as large as the write for each scale, only to sum it.
    """

    @staticmethod
    def forward(
        ctx: Any, write: Tensor, shift: Tensor, activation_scale: Tensor, _core: Tensor | None, maps: Maps | None
    ) -> Tensor:
        result, within = injected_with_within(write, shift, activation_scale, maps)
        ctx.save_for_backward(write, activation_scale, within)
        ctx.maps = maps
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        write, activation_scale, within = ctx.saved_tensors
        return *gradients(gradient, write, activation_scale, within, ctx.maps, ctx.needs_input_grad[:4]), None


def gradients(
    gradient: Tensor,
    write: Tensor,
    activation_scale: Tensor,
    within: Tensor | None,
    maps: Maps | None,
    wanted: Sequence[bool] = (True, True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Of the write, the shift, the scale and the core, as far as wanted; ``within`` is ``U y``, ``(tokens, r)`` float32."""
    exact = gradient.to(torch.float32)
    for_write = for_shift = for_activation = for_core = None
    if wanted[1]:
        for_shift = exact.sum(dim=tuple(range(exact.dim() - 1)))
    if wanted[2]:
        for_activation = torch.dot(exact.reshape(-1), write.reshape(-1).to(torch.float32))
    if maps is None or within is None:
        if wanted[0]:
            for_write = torch.mul(exact, activation_scale, out=_other(write))
        return for_write, for_shift, for_activation, None
    rows = exact.reshape(-1, exact.shape[-1])
    inner = rows @ maps.basis  # (tokens, r)
    if wanted[3]:
        for_core = inner.T @ within
    if wanted[0]:
        for_write = (rows * activation_scale).addmm_(inner, maps.backwards).to(write.dtype).view(write.shape)
    return for_write, for_shift, for_activation, for_core


def plain_changes(vectors: Tensor, scales: Tensor, basis: Tensor | None, core: Tensor | None) -> list[Change]:
    """Of each of ``W`` writes what changes it: :func:`inject` with its part of the arguments, differentiable in them.

    Args:
        vectors: ``(W, d)`` float32: the global context vectors.
        scales: ``(W, 2)`` float32: λ and β.
        basis: ``(W, r, d)`` float32; None without a subspace.
        core: ``(W, r, r)`` float32; given with a basis.
    """
    # Taken apart by one operation each, so that the gradients come together again in one.
    shifts, factors = (scales[:, :1] * vectors).unbind(), scales[:, 1].unbind()
    if basis is None or core is None:
        return [partial(inject, shift=shift, activation_scale=factor) for shift, factor in zip(shifts, factors, strict=True)]
    parts = zip(shifts, factors, core.unbind(), Maps.of(basis, core), strict=True)
    return [
        partial(inject, shift=shift, activation_scale=factor, core=of_write, maps=maps)
        for shift, factor, of_write, maps in parts
    ]


def inject_rows(
    write: Tensor, shift: Tensor, activation_scale: Tensor, core: Tensor | None = None, basis: Tensor | None = None
) -> Tensor:
    """:func:`inject` with other coefficients in each of ``P`` groups of rows, in as many operations as with one.

    Args:
        write: ``y``, ``(P, N, d)``.
        shift: ``λ·v``, ``(P, 1, d)`` float32.
        activation_scale: ``β``, ``(P, 1, 1)`` float32.
        core: ``Γ``, ``(P, r, r)`` float32.
        basis: ``U``, ``(r, d)`` float32, of all groups; given with a core.
    """
    result: Tensor = _InjectRows.apply(write, shift, activation_scale, core, basis)  # type: ignore[no-untyped-call]
    return result


class _InjectRows(torch.autograd.Function):
    """As :class:`_Inject`."""

    @staticmethod
    def forward(
        ctx: Any, write: Tensor, shift: Tensor, activation_scale: Tensor, core: Tensor | None, basis: Tensor | None
    ) -> Tensor:
        within = None
        if core is None or basis is None:
            result = torch.addcmul(shift, write, activation_scale, out=_other(write))
        else:
            total = torch.addcmul(shift, write, activation_scale)
            within = write.to(torch.float32) @ basis.T  # (P, N, r)
            total.view(-1, total.shape[-1]).addmm_((within @ core.mT).view(-1, len(basis)), basis)
            result = total.to(write.dtype)
        ctx.save_for_backward(write, activation_scale, core, basis, within)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        write, activation_scale, core, basis, within = ctx.saved_tensors
        exact, for_core = gradient.to(torch.float32), None
        for_shift = exact.sum(dim=1, keepdim=True)
        for_activation = (exact * write).sum(dim=(1, 2), keepdim=True)
        if core is None:
            for_write = torch.mul(exact, activation_scale, out=_other(write))
            return for_write, for_shift, for_activation, None, None
        inner = exact @ basis.T  # (P, N, r)
        for_core = inner.mT @ within
        through = exact * activation_scale
        through.view(-1, through.shape[-1]).addmm_((inner @ core).view(-1, len(basis)), basis)
        return through.to(write.dtype), for_shift, for_activation, for_core, None


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
    ``(d, n)``, ``bias`` ``(d,)`` or None, ``vector`` is ``v``, ``(d,)``, ``basis`` is ``U``, ``(r, d)``.
    """

    def changed(values: Tensor) -> Tensor:
        result = activation_scale * values
        return result if basis is None or core is None else result + basis.T @ (core @ (basis @ values))

    shift = torch.zeros_like(vector) if bias is None else changed(bias.float())
    return changed(weight.float()), shift + context_scale * vector
