"""Weight-only quantisation: the projections of a model in 8 or 4 bits, everything else as it is.

The library torchao chooses the numbers. They are held in a module of our own: torchao's keeps a weight in full size for the
backward pass, and its packed 4 bits run on GPUs only and have no gradient. Here a weight is in full size only while its own
product is computed, forwards and backwards, and all devices compute with the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ifedicl.backbone.quantised_kinds import KINDS, Kind
from ifedicl.errors import BackboneError

EXTRA = "pip install 'ifedicl[quantised]'"


def quantise(model: Any, quantisation: str, source: str) -> None:
    """Replace every linear layer below the LM head, in place. The embedding and the head stay: label words are read by them.

    Raises:
        BackboneError: torchao is not installed, or the model has no projections that can be quantised.
    """
    kind, body = KINDS[quantisation], model.base_model
    linear = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise BackboneError(
            f'model.quantisation: received "{quantisation}", but {source} ({model.config.model_type}) has no linear layers of '
            "torch (GPT-2 stores its projections otherwise); allowed: leave it out. Leave it out, or choose another model"
        )
    odd = [name for name, module in linear if kind.group and module.in_features % kind.group]
    if odd:
        raise BackboneError(
            f'model.quantisation: received "{quantisation}", but {source} has layers whose width is no multiple of '
            f'{kind.group}, for instance {odd[0]}; allowed: "int8", or none. Use "int8"'
        )
    for name, module in linear:
        parent, _, child = name.rpartition(".")
        setattr(body.get_submodule(parent), child, WeightOnlyLinear.of(module, kind))


class WeightOnlyLinear(nn.Module):
    """``x Wᵀ + b`` with a quantised ``W``, ``(n, m)``.

    Attributes:
        numbers: ``(n, m)`` int8; of 4 bits ``(n, m / 2)`` uint8, two numbers in a byte, the first one low.
        factors: ``(n, m / group)`` in the dtype that the model computes in; one column without groups.
        bias: ``(n,)``, or None.
    """

    numbers: Tensor
    factors: Tensor

    def __init__(self, numbers: Tensor, factors: Tensor, bias: nn.Parameter | None, bits: int) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers)
        self.register_buffer("factors", factors)
        self.bias = bias
        self._bits = bits

    @classmethod
    def of(cls, linear: nn.Linear, kind: Kind) -> WeightOnlyLinear:
        """A linear layer with its weight quantised."""
        chosen = _chosen(linear.weight.detach(), kind)
        numbers = chosen.qdata.to(torch.int8)
        if kind.bits == 4:
            low, high = numbers[:, ::2].to(torch.uint8) & 15, numbers[:, 1::2].to(torch.uint8) & 15
            numbers = low | (high << 4)
        return cls(numbers.contiguous(), chosen.scale.reshape(len(numbers), -1).to(linear.weight.dtype), linear.bias, kind.bits)

    def dequantised(self) -> Tensor:
        """``W`` in the dtype of the factors."""
        numbers = self.numbers
        if self._bits == 4:
            nibbles = torch.stack([numbers & 15, numbers >> 4], dim=-1).flatten(1).to(torch.int8)
            numbers = nibbles - ((nibbles & 8) << 1)  # of two's complement
        grouped = numbers.to(self.factors.dtype).view(*self.factors.shape, -1)
        return (grouped * self.factors.unsqueeze(-1)).flatten(1)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., n)`` of ``(..., m)``."""
        result: Tensor = _WeightOnly.apply(inputs, self)  # type: ignore[no-untyped-call]
        return result


class _WeightOnly(torch.autograd.Function):
    """The weight is computed again for the backward pass, not kept: kept weights would be the whole model in full size."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, module: WeightOnlyLinear) -> Tensor:
        ctx.module = module
        return functional.linear(inputs, module.dequantised(), module.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        return gradient @ ctx.module.dequantised(), None


def _chosen(weight: Tensor, kind: Kind) -> Any:
    """The library's tensor of whole numbers, ``qdata``, and factors, ``scale``."""
    try:
        from torchao.quantization import IntxUnpackedToInt8Tensor
    except ImportError as error:
        raise BackboneError(
            f"model.quantisation: torchao, which chooses the numbers, is not installed. Run: {EXTRA}. Or leave it out"
        ) from error
    block = (1, kind.group or weight.shape[1])
    return IntxUnpackedToInt8Tensor.from_hp(weight, block, getattr(torch, f"int{kind.bits}"))
