"""The server's optimizers: one step along the direction that the clients' replies give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.vectors import Array32

Arrays: TypeAlias = Mapping[str, Array32]
ServerOptimizer: TypeAlias = Literal["momentum", "adam"]
_SECOND_DECAY = 0.99
_EPSILON = 1e-8


@dataclass(frozen=True)
class Moments:
    """An optimizer's state between rounds, stored in the checkpoint.

    Attributes:
        steps: number of steps taken.
        first: running mean of the directions, by array name, shaped as the coefficients.
        second: running mean of their squares; zeros if the optimizer needs none.
    """

    steps: int
    first: Arrays
    second: Arrays

    @classmethod
    def none(cls, like: Coefficients) -> Moments:
        """Before the first step."""
        zeros = {name: np.zeros_like(array) for name, array in like.arrays.items()}
        return cls(0, zeros, zeros)


def stepped(
    coefficients: Coefficients,
    direction: Arrays,
    moments: Moments,
    optimizer: ServerOptimizer,
    *,
    rate: float,
    momentum: float,
    decay: float = 0.0,
) -> tuple[Coefficients, Moments]:
    """The coefficients after one step against ``direction``, and the optimizer's new state.

    Args:
        coefficients: before the step.
        direction: a gradient, or the coefficients minus the clients' mean; by array name, shaped as the coefficients.
        moments: the state after the step before.
        optimizer: ``"momentum"`` (``m ← μm + g``, heavy ball) or ``"adam"`` (Kingma and Ba 2015, with bias correction), as
            FedAvgM and FedAdam use them (Reddi et al. 2021).
        rate: learning rate of this step.
        momentum: ``μ``, or Adam's ``β₁``.
        decay: weight decay towards identity, decoupled from the direction (Loshchilov and Hutter 2019).
    """
    along, remembered = _OPTIMIZERS[optimizer](direction, moments, momentum)
    identity = Coefficients.identity(coefficients.form).arrays
    moved = {
        name: (array - rate * (along[name] + decay * (array - identity[name]))).astype(np.float32)
        for name, array in coefficients.arrays.items()
    }
    return Coefficients.of(moved), remembered


def _momentum(direction: Arrays, moments: Moments, momentum: float) -> tuple[Arrays, Moments]:
    first = {name: momentum * moments.first[name] + direction[name] for name in direction}
    return first, Moments(moments.steps + 1, first, moments.second)


def _adam(direction: Arrays, moments: Moments, momentum: float) -> tuple[Arrays, Moments]:
    steps = moments.steps + 1
    first = {name: momentum * moments.first[name] + (1 - momentum) * direction[name] for name in direction}
    second = {name: _SECOND_DECAY * moments.second[name] + (1 - _SECOND_DECAY) * direction[name] ** 2 for name in direction}
    unbiased: dict[str, Array32] = {}
    for name in direction:
        size = np.sqrt(second[name] / np.float32(1 - _SECOND_DECAY**steps)) + np.float32(_EPSILON)
        unbiased[name] = (first[name] / np.float32(1 - momentum**steps) / size).astype(np.float32)
    return unbiased, Moments(steps, first, second)


_OPTIMIZERS: Mapping[ServerOptimizer, Callable[[Arrays, Moments, float], tuple[Arrays, Moments]]] = {
    "momentum": _momentum,
    "adam": _adam,
}
