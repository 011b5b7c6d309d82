"""How the server makes one out of many. Sums run in the order given, so a result does not depend on who answered first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

import numpy as np

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.vectors import Array32, ContextVectors, pooled_mean, uniform_mean

Weighting: TypeAlias = Literal["uniform", "examples"]

AGGREGATE_VECTORS: Mapping[Weighting, Callable[[Sequence[ContextVectors]], Array32]] = {
    "uniform": uniform_mean,
    "examples": pooled_mean,
}
"""Stage 2a (paper Eq. 3): clients' vectors to the global vector ``(L, 2, d)``."""

_WEIGHTS: Mapping[Weighting, Callable[[int], float]] = {"uniform": lambda _examples: 1.0, "examples": float}


@dataclass(frozen=True)
class GradientSum:
    """What some examples say about the coefficients; sums of several clients add up to that of their pooled text.

    Attributes:
        arrays: gradient of the summed loss, by array name, float32, shaped as the coefficients.
        examples: how many they are.
        loss: summed, in nats.
    """

    arrays: Mapping[str, Array32]
    examples: int
    loss: float

    def combine(self, other: Self) -> Self:
        """Of both sets of examples."""
        arrays = {name: array + other.arrays[name] for name, array in self.arrays.items()}
        return type(self)(arrays, self.examples + other.examples, self.loss + other.loss)

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.loss)) and all(bool(np.isfinite(array).all()) for array in self.arrays.values())


def average_coefficients(updates: Sequence[Coefficients], examples: Sequence[int], weighting: Weighting) -> Coefficients:
    """Stage 2b (paper Eq. 7): ``Λ = Σ w_k Λ_k / Σ w_k``.

    Args:
        updates: the clients' coefficients, in client order.
        examples: how many examples each of them trained on.
        weighting: ``"uniform"`` (``w_k = 1``, the paper) or ``"examples"``.
    """
    weights = np.array([_WEIGHTS[weighting](count) for count in examples])
    totals = {name: np.zeros(array.shape) for name, array in updates[0].arrays.items()}
    for update, weight in zip(updates, weights, strict=True):
        for name, array in update.arrays.items():
            totals[name] += weight * array
    return Coefficients.of({name: (total / weights.sum()).astype(np.float32) for name, total in totals.items()})
