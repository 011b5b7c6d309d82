"""Distributed noise: each client adds a share that is too small alone; the sum of the shares is large enough.

Shares are Skellam numbers (differences of two Poisson numbers): their sum is exactly Skellam again, and integers can be summed
modulo 2^k (Agarwal, Kairouz and Liu 2021).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ifedicl.dp.clipping import Steps

_LARGEST_VARIANCE = 2.0**44
"""Poisson numbers are drawn in double precision: near 2^53 their variance is too large, by a quarter at 2^57."""


@dataclass(frozen=True)
class Crowd:
    """The clients that add noise to a sum.

    Attributes:
        survivors: the minimum number of clients in a sum that is opened.
        colluders: how many of them may reveal their shares to the server.
    """

    survivors: int
    colluders: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.colluders < self.survivors:
            raise ValueError(f"colluders: received {self.colluders}; allowed: fewer than the {self.survivors} survivors")

    def share(self, variance: float) -> float:
        """The variance that each client adds, so that a sum of the minimum survivors has ``variance`` without the colluders.

        If more clients answer, a sum has more noise than it needs.
        """
        return variance / (self.survivors - self.colluders)


def skellam(size: int, variance: float, draw: np.random.Generator) -> Steps:
    """``(size,)``: independent integers of mean 0, each the difference of two Poisson numbers of half the ``variance``.

    Raises:
        ValueError: the variance is too large for floating-point Poisson draws; use a coarser grid.
    """
    if not 0 <= variance <= _LARGEST_VARIANCE:
        raise ValueError(f"variance: received {variance:g} squared steps; allowed: 0 to {_LARGEST_VARIANCE:g}")
    return draw.poisson(variance / 2, size) - draw.poisson(variance / 2, size)


class Shares:
    """One client's noise shares for secure sums, by kind of message and number of values."""

    def __init__(self, variances: Mapping[str, float], crowd: Crowd) -> None:
        """Seed the draws from the operating system, so that nobody can repeat them.

        ``variances`` are those of the whole noise on a sum, in squared steps, by kind of message.
        """
        self._shares = {kind: crowd.share(variance) for kind, variance in variances.items()}
        self._draw = np.random.default_rng(secrets.randbits(256))

    def __call__(self, kind: str, size: int) -> Steps:
        """``(size,)`` in steps.

        Raises:
            KeyError: no noise is planned for messages of this kind, so they must not be sent.
        """
        return skellam(size, self._shares[kind], self._draw)
