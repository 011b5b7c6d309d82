"""What the server makes of the clients' replies: one global vector, one summed gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ifedicl.core.vectors import Array32, ContextVectors, all_finite, pooled_mean, uniform_mean

Weighting: TypeAlias = Literal["uniform", "examples"]

AGGREGATE_VECTORS: Mapping[Weighting, Callable[[Sequence[ContextVectors]], Array32]] = {
    "uniform": uniform_mean,
    "examples": pooled_mean,
}
"""Stage 2a (paper Eq. 3): clients' vectors to the global vector ``(L, 2, d)``."""


@dataclass(frozen=True)
class GradientSum:
    """The gradient of the summed loss of some examples. The sums of several clients add up to the sum of their pooled text.

    Attributes:
        arrays: gradient by array name, float32, shaped as the coefficients.
        examples: number of examples.
        loss: summed loss, in nats.
    """

    arrays: Mapping[str, Array32]
    examples: int
    loss: float

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.loss)) and all_finite(self.arrays)
