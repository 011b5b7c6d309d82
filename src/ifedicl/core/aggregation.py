"""How the server makes one out of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ifedicl.core.vectors import Array32, ContextVectors, pooled_mean, uniform_mean

Weighting: TypeAlias = Literal["uniform", "examples"]

AGGREGATE_VECTORS: Mapping[Weighting, Callable[[Sequence[ContextVectors]], Array32]] = {
    "uniform": uniform_mean,
    "examples": pooled_mean,
}
"""Stage 2a (paper Eq. 3): clients' vectors to the global vector ``(L, 2, d)``."""


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

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.loss)) and all(bool(np.isfinite(array).all()) for array in self.arrays.values())
