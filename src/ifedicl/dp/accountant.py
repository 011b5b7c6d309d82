"""What releases cost in ε: Rényi bounds of the Skellam mechanism, composed and converted by ``dp-accounting``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import dp_accounting
import numpy as np
from dp_accounting import rdp
from scipy.optimize import brentq

from ifedicl.core.vectors import Array64
from ifedicl.errors import BudgetSpentError

_ORDERS = np.array([*range(2, 65), 80, 96, 128, 192, 256, 512, 1024])
"""Whole numbers: the bound on Skellam noise holds for these."""
_LEAST, _MOST = 1e-2, 1e6  # noise multipliers between which one is looked for


@dataclass(frozen=True)
class Release:
    """Equal noisy sums that leave, one after another.

    Attributes:
        size: ``D``, numbers in each.
        sensitivity: L2, in steps, of one example more or less.
        variance: of the Skellam noise on each number, in squared steps.
        times: how many of them.
    """

    size: int
    sensitivity: float
    variance: float
    times: int = 1

    @property
    def event(self) -> dp_accounting.DpEvent:
        """One of them, as the library knows it.

        Agarwal, Kairouz and Liu 2021, theorem 3.5 bounds the Rényi divergence of order α (whole) by ``αΔ₂²/2μ`` plus the
        smaller of ``((2α - 1)Δ₂² + 6Δ₁)/4μ²`` and ``3Δ₁/2μ``: both are linear in α, as ρ-zCDP with an offset ξ is. ``Δ₁`` is at
        most ``√D Δ₂``.
        """
        squared, l1 = self.sensitivity**2, math.sqrt(self.size) * self.sensitivity
        variance = self.variance
        rho = squared / (2 * variance)
        fine = rho + squared / (2 * variance**2), max(0.0, (6 * l1 - squared) / (4 * variance**2))
        coarse = rho, 3 * l1 / (2 * variance)
        rho, xi = min(fine, coarse, key=lambda bound: bound[0] * 8 + bound[1])  # at a middling order; both are valid
        return dp_accounting.ZCDpEvent(rho=rho, xi=xi)

    @property
    def curve(self) -> Array64:
        """Rényi bounds of all of them together, at each of our orders."""
        accountant = rdp.RdpAccountant(_ORDERS)
        accountant.compose(self.event)
        one: Array64 = accountant.rdp
        return self.times * one


def epsilon(releases: Sequence[Release], delta: float) -> float:
    """What all of them together cost whoever's example is in all of them."""
    total = sum((release.curve for release in releases), np.zeros(len(_ORDERS)))
    return float(rdp.compute_epsilon(_ORDERS, total, delta)[0])


def noise_multiplier(target: float, delta: float, releases: Callable[[float], Sequence[Release]]) -> float:
    """The least noise, as a multiple of the sensitivity, that keeps ``releases`` within ``target``.

    Args:
        target: ε.
        delta: δ.
        releases: what leaves if the noise's standard deviation is a given multiple of the sensitivity.

    Raises:
        ValueError: no noise is enough, or none is needed.
    """

    def excess(logarithm: float) -> float:
        return epsilon(releases(math.exp(logarithm)), delta) - target

    precision = 1e-6
    root = brentq(excess, math.log(_LEAST), math.log(_MOST), xtol=precision)
    return math.exp(float(root) + 2 * precision)  # on the safe side


@dataclass(frozen=True)
class Budget:
    """What one owner's examples may cost, and what they have cost so far. It never changes: spending gives a new one.

    Attributes:
        epsilon: most that may be spent.
        delta: δ.
        spent: what has left, in order; ``dataclasses.asdict`` of each is JSON for a ledger.
    """

    epsilon: float
    delta: float
    spent: tuple[Release, ...] = ()

    @property
    def spent_epsilon(self) -> float:
        """Of all that has left."""
        return epsilon(self.spent, self.delta)

    def after(self, release: Release) -> Self:
        """The budget once ``release`` has left; ask before it does.

        Raises:
            BudgetSpentError: it would cost more than there is; nothing is spent.
        """
        after = replace(self, spent=(*self.spent, release))
        if after.spent_epsilon > self.epsilon:
            raise BudgetSpentError(
                f"privacy budget: this release would make it ε {after.spent_epsilon:.2f} of {self.epsilon:g} at δ "
                f"{self.delta:g} ({self.spent_epsilon:.2f} are spent), so nothing is sent. Raise the budget in the owner's "
                "policy, or stay with the adapter that there is"
            )
        return after
