"""Noise for sums that no one adds alone: each client's share is too small to hide it, the sum of the shares is not.

Shares are Skellam (the difference of two Poisson numbers): sums of Skellam numbers are Skellam again, exactly, and whole
numbers stay what they are modulo 2^k (Agarwal, Kairouz and Liu 2021).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ifedicl.dp.clipping import Steps

_LARGEST_VARIANCE = 2.0**44
"""Poisson numbers are drawn in double precision: near 2^53 they come out too wide, by a quarter at 2^57."""


@dataclass(frozen=True)
class Crowd:
    """Who adds noise to a sum.

    Attributes:
        survivors: fewest clients that a sum is ever opened for.
        colluders: how many of them may tell the server their own shares.
    """

    survivors: int
    colluders: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.colluders < self.survivors:
            raise ValueError(f"{self.colluders} colluders of {self.survivors} survivors leave no one whose noise is unknown")

    def share(self, variance: float) -> float:
        """The variance that each client adds: without the colluders' shares, a sum over the fewest still carries ``variance``.

        Where more clients answer, a sum carries more than it needs.
        """
        return variance / (self.survivors - self.colluders)


def skellam(size: int, variance: float, draw: np.random.Generator) -> Steps:
    """``(size,)``: independent whole numbers of mean 0.

    Args:
        size: how many.
        variance: of each; the difference of two Poisson numbers of half of it.
        draw: where they come from.

    Raises:
        ValueError: the variance is beyond what floating-point Poisson draws have right; take a coarser grid.
    """
    if not 0 <= variance <= _LARGEST_VARIANCE:
        raise ValueError(f"a noise variance of {variance:g} squared steps is not in 0 to {_LARGEST_VARIANCE:g}")
    return draw.poisson(variance / 2, size) - draw.poisson(variance / 2, size)


class Shares:
    """One client's noise shares, as a secure sum asks for them: by kind of message and how many numbers it has."""

    def __init__(self, variances: Mapping[str, float], crowd: Crowd) -> None:
        """Seed the draws from the operating system: nobody can repeat them.

        Args:
            variances: by kind of message, of the whole noise on the sum, in squared steps.
            crowd: who adds to it.
        """
        self._shares = {kind: crowd.share(variance) for kind, variance in variances.items()}
        self._draw = np.random.default_rng(secrets.randbits(256))

    def __call__(self, kind: str, size: int) -> Steps:
        """``(size,)`` in steps.

        Raises:
            KeyError: nothing was planned for messages of this kind, so they must not leave.
        """
        return skellam(size, self._shares[kind], self._draw)
