"""What stands between an attacker and a sum of vectors: nothing, or clip and noise. Secure sums make ``n`` larger, no more."""

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
    """How a sum over examples leaves.

    Attributes:
        epsilon: of one release at δ = 1e-5; infinite: no noise.
        clip: L2 bound of each example; infinite: none.
        multiplier: standard deviation of the noise over the sensitivity.
    """

    epsilon: float = math.inf
    clip: float = math.inf
    multiplier: float = 0.0

    @classmethod
    def of(cls, epsilon: float, clip: float, size: int, times: int = 1) -> Self:
        """With as much noise as a budget asks for.

        Args:
            epsilon: for all releases together.
            clip: of each example.
            size: numbers in a release.
            times: how many releases.
        """
        bound = Bound(clip, size)

        def releases(multiplier: float) -> list[Release]:
            return [Release(size, bound.sensitivity, (multiplier * bound.sensitivity) ** 2, times)]

        return cls(epsilon, clip, noise_multiplier(epsilon, DELTA, releases))

    @property
    def is_none(self) -> bool:
        """Whether sums leave as they are."""
        return math.isinf(self.epsilon)

    def kept(self, rows: npt.NDArray[np.floating]) -> Array32:
        """``(N, D)``: what of each example goes into a sum."""
        if self.is_none:
            return rows.astype(np.float32)
        bound = Bound(self.clip, rows.shape[1])
        kept: Array32 = (bound.rounded(rows) * bound.step).astype(np.float32)
        return kept

    def released(self, kept: Array32, draw: np.random.Generator) -> Array64:
        """``(D,)``: the sum over ``(N, D)`` rows of :meth:`kept`, as it leaves."""
        total: Array64 = kept.sum(axis=0).astype(np.float64)
        return total if self.is_none else total + self.noise(kept.shape[1], draw)

    def noise(self, size: int, draw: np.random.Generator) -> Array64:
        """``(D,)``: what is added."""
        bound = Bound(self.clip, size)
        noise: Array64 = skellam(size, (self.multiplier * bound.sensitivity) ** 2, draw) * np.float64(bound.step)
        return noise


def median_norm(rows: npt.NDArray[np.floating]) -> float:
    """The clip that we take: of public text, so that it costs nothing."""
    return float(np.median(np.linalg.norm(rows, axis=1)))


def budgets(epsilons: Sequence[float], rows: npt.NDArray[np.floating], times: int = 1) -> list[Defence]:
    """No defence, then one for each ε, clipped at the median norm of ``(N, D)`` public rows."""
    clip = median_norm(rows)
    return [Defence(), *(Defence.of(epsilon, clip, rows.shape[1], times) for epsilon in epsilons)]
