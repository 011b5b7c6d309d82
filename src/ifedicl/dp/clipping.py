"""Bounding what one example can change: clip, then rounding to a grid, with the rounding inside the sensitivity.

Neighbours are sets of examples that differ by one example more or less. Each example is clipped and rounded on its own, so
what one more of them adds to a sum is bounded, and sums of grid points are exact in every order and at every client.
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
"""Least number of steps that a clip is long: the sum of a thousand examples stays below 2^24 steps, exact in float32."""


@dataclass(frozen=True)
class Bound:
    """What one example may add to a sum.

    Attributes:
        clip: largest L2 norm, in the unit of the numbers.
        size: ``D``, how many numbers there are.
    """

    clip: float
    size: int

    @property
    def step(self) -> float:
        """Of the grid: a power of two, which any finer fixed-point step divides."""
        return float(2.0 ** math.floor(math.log2(self.clip / _FINENESS)))

    @property
    def sensitivity(self) -> float:
        """L2, in steps: rounding moves a clipped point by half a step in each coordinate at most."""
        return self.clip / self.step + math.sqrt(self.size) / 2

    def rounded(self, rows: npt.NDArray[np.floating]) -> Steps:
        """``(N, D)`` in steps: each row clipped and rounded; an example that is not finite counts as 0.

        Raises:
            ValueError: the rows have another size.
        """
        if rows.shape[1:] != (self.size,):
            raise ValueError(f"rows {rows.shape} are not (N, {self.size})")
        return np.rint(clipped(rows, self.clip) / self.step).astype(np.int64)

    def sum(self, rows: npt.NDArray[np.floating]) -> Steps:
        """``(D,)`` in steps: the sum over :meth:`rounded` rows."""
        total: Steps = self.rounded(rows).sum(axis=0)
        return total


def clipped(rows: npt.NDArray[np.floating], clip: float) -> Array64:
    """``(N, D)``: each row scaled down to an L2 norm of ``clip`` where it is longer; zeros where it is not finite."""
    exact = rows.astype(np.float64)
    exact[~np.isfinite(exact).all(axis=1)] = 0.0
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    result: Array64 = exact * np.minimum(1.0, clip / np.maximum(norms, np.finfo(np.float64).tiny))
    return result


def joint(arrays: Mapping[str, npt.NDArray[np.floating]], weights: Mapping[str, npt.NDArray[np.floating]]) -> Array64:
    """``(N, D)``: all arrays of each example as one row, since one clip bounds them together.

    Args:
        arrays: by name, each ``(N, ...)``.
        weights: by the same names, each of the shape of one example's array: what the numbers are multiplied with, so that none
            drowns the others. Public, and never 0 where a number matters.
    """
    parts = [(array * weights[name]).reshape(len(array), -1) for name, array in arrays.items()]
    return np.concatenate(parts, axis=1, dtype=np.float64)
