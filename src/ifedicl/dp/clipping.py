"""Clipping, then rounding to a grid: bounds what one example changes. The sensitivity includes the rounding.

Neighbouring sets of examples differ by one example more or less. Each example is clipped and rounded separately, so what it
adds to a sum is bounded, and sums of grid points are exact in every order and at every client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array64

Steps: TypeAlias = npt.NDArray[np.int64]
_FINENESS = 2**13
"""The smallest number of steps in a clip: the sum of a thousand examples stays below 2^24 steps, exact in float32."""


@dataclass(frozen=True)
class Bound:
    """The bound on what one example adds to a sum: the largest L2 norm ``clip`` of its ``D`` = ``size`` numbers."""

    clip: float
    size: int

    @property
    def step(self) -> float:
        """The step of the grid: a power of two, so a multiple of any finer fixed-point step."""
        return float(2.0 ** math.floor(math.log2(self.clip / _FINENESS)))

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity in steps: rounding moves a clipped point by at most half a step in each coordinate."""
        return self.clip / self.step + math.sqrt(self.size) / 2

    def rounded(self, rows: npt.NDArray[np.floating]) -> Steps:
        """``(N, D)`` in steps: each row clipped and rounded; a row that is not finite becomes 0.

        Raises:
            ValueError: the rows have another size.
        """
        if rows.shape[1:] != (self.size,):
            raise ValueError(f"rows: received {rows.shape}; allowed: (N, {self.size})")
        return np.rint(clipped(rows, self.clip) / self.step).astype(np.int64)

    def sum(self, rows: npt.NDArray[np.floating]) -> Steps:
        """``(D,)`` in steps: the sum over :meth:`rounded` rows."""
        total: Steps = self.rounded(rows).sum(axis=0)
        return total


def clipped(rows: npt.NDArray[np.floating], clip: float) -> Array64:
    """``(N, D)``: each row scaled down to an L2 norm of ``clip`` if it is longer; zeros if it is not finite."""
    exact = rows.astype(np.float64)
    exact[~np.isfinite(exact).all(axis=1)] = 0.0
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    result: Array64 = exact * np.minimum(1.0, clip / np.maximum(norms, np.finfo(np.float64).tiny))
    return result


def joint(arrays: Mapping[str, npt.NDArray[np.floating]], weights: Mapping[str, npt.NDArray[np.floating]]) -> Array64:
    """``(N, D)``: all arrays of each example as one row, since one clip bounds them together.

    Args:
        arrays: by name, each ``(N, ...)``.
        weights: public factors of the numbers, by name, each of the shape of one example's array, so that no array dominates
            the norm; not 0 for numbers that matter.
    """
    parts = [(array * weights[name]).reshape(len(array), -1) for name, array in arrays.items()]
    return np.concatenate(parts, axis=1, dtype=np.float64)
