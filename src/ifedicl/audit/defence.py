"""Defences of a sum of vectors: none, or clipping and noise. A secure sum only makes the number of examples larger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array32, Array64
from ifedicl.dp.accountant import Release, noise_multiplier
from ifedicl.dp.clipping import Bound
from ifedicl.dp.skellam import skellam

DELTA = 1e-5


@dataclass(frozen=True)
class Defence:
    """Clipping and noise of a sum over examples.

    Attributes:
        epsilon: ε at δ = 1e-5; infinite: no noise.
        clip: L2 bound of each example; infinite: no clipping.
        multiplier: standard deviation of the noise divided by the sensitivity.
    """

    epsilon: float = math.inf
    clip: float = math.inf
    multiplier: float = 0.0

    @classmethod
    def of(cls, epsilon: float, clip: float, size: int, times: int = 1) -> Self:
        """The least noise for a budget.

        Args:
            epsilon: budget of all releases together.
            clip: L2 bound of each example.
            size: numbers in a release.
            times: number of releases.
        """
        bound = Bound(clip, size)

        def releases(multiplier: float) -> list[Release]:
            return [Release(size, bound.sensitivity, (multiplier * bound.sensitivity) ** 2, times)]

        return cls(epsilon, clip, noise_multiplier(epsilon, DELTA, releases))

    @property
    def is_none(self) -> bool:
        """Whether sums have neither clipping nor noise."""
        return math.isinf(self.epsilon)

    def clipped(self, rows: npt.NDArray[np.floating]) -> Array32:
        """``(N, D)``: each example as it enters a sum."""
        if self.is_none:
            return rows.astype(np.float32)
        bound = Bound(self.clip, rows.shape[1])
        return np.asarray(bound.rounded(rows) * bound.step, dtype=np.float32)

    def noisy_sum(self, clipped: Array32, draw: np.random.Generator) -> Array64:
        """``(D,)``: the sum over ``(N, D)`` rows of :meth:`clipped`, with noise."""
        total: Array64 = clipped.sum(axis=0).astype(np.float64)
        return total if self.is_none else total + self.noise(clipped.shape[1], draw)

    def noise(self, size: int, draw: np.random.Generator) -> Array64:
        """``(D,)`` noise of one sum."""
        bound = Bound(self.clip, size)
        return np.asarray(skellam(size, (self.multiplier * bound.sensitivity) ** 2, draw) * np.float64(bound.step))


def median_norm(rows: npt.NDArray[np.floating]) -> float:
    """The clip: the median norm of public rows, which costs no budget."""
    return float(np.median(np.linalg.norm(rows, axis=1)))


def budgets(epsilons: Sequence[float], rows: npt.NDArray[np.floating], times: int = 1) -> list[Defence]:
    """No defence, then one for each ε, clipped at the median norm of ``(N, D)`` public rows."""
    clip = median_norm(rows)
    return [Defence(), *(Defence.of(epsilon, clip, rows.shape[1], times) for epsilon in epsilons)]
