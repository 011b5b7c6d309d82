"""An offset and a scale for each feature, the same at every client: numbers of similar size can be added in few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array64

LARGEST_FEATURE = 100.0
"""In deviations of public text. Features beyond it are shortened, so that what a sum can hold is bounded."""
_NARROWEST = 0.1  # of the median deviation: features that hardly vary in public text are not blown up


@dataclass(frozen=True)
class Units:
    """Means and deviations of ``F`` features in public text.

    Attributes:
        offset: ``(F,)`` float64.
        scale: ``(F,)`` float64, above 0.
    """

    offset: Array64
    scale: Array64

    @classmethod
    def of(cls, features: Array64) -> Units:
        """From ``(N, F)`` features of public text; at least two texts."""
        deviations = features.std(axis=0)
        narrowest = _NARROWEST * max(float(np.median(deviations)), float(np.finfo(np.float32).tiny))
        return Units(features.mean(axis=0), np.maximum(deviations, narrowest))

    @classmethod
    def none(cls, features: int) -> Self:
        """Units that change no feature."""
        return cls(np.zeros(features), np.ones(features))

    @classmethod
    def of_numbers(cls, offset: Array64, scale: Array64) -> Units:
        """From :attr:`numbers`."""
        return Units(offset * np.exp(scale), np.exp(scale))

    @property
    def numbers(self) -> tuple[Array64, Array64]:
        """The same as numbers of similar size: the offset in units of the scale, and the scale's logarithm; ``(F,)`` each."""
        return self.offset / self.scale, np.log(self.scale)

    @property
    def are_usable(self) -> bool:
        """Whether all numbers are finite and all scales above 0."""
        return bool(np.isfinite(self.offset).all() and np.isfinite(self.scale).all() and (self.scale > 0).all())

    def standard(self, features: npt.NDArray[np.floating]) -> Array64:
        """``(N, F)`` features in these units, at most :data:`LARGEST_FEATURE` of them."""
        inside: Array64 = np.clip((features - self.offset) / self.scale, -LARGEST_FEATURE, LARGEST_FEATURE)
        return inside
