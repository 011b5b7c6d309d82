"""The privacy cost ε of releases: Rényi bounds of the Skellam mechanism, composed and converted by ``dp-accounting``."""

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
"""Integers: the bound on Skellam noise holds for these."""
_LEAST, _MOST = 1e-2, 1e6  # the range of noise multipliers that is searched


@dataclass(frozen=True)
class Release:
    """``times`` noisy sums of the same kind.

    Attributes:
        size: ``D``, the numbers in each sum.
        sensitivity: L2 sensitivity, in steps, to one example more or less.
        variance: of the Skellam noise on each number, in squared steps.
        times: number of sums.
    """

    size: int
    sensitivity: float
    variance: float
    times: int = 1

    @property
    def event(self) -> dp_accounting.DpEvent:
        """One of the sums as an event of ``dp-accounting``.

        Agarwal, Kairouz and Liu 2021, theorem 3.5 bounds the Rényi divergence of integer order α by ``αΔ₂²/2μ`` plus the
        smaller of ``((2α - 1)Δ₂² + 6Δ₁)/4μ²`` and ``3Δ₁/2μ``: both are linear in α, as ρ-zCDP with an offset ξ is. ``Δ₁`` is at
        most ``√D Δ₂``.
        """
        squared, l1 = self.sensitivity**2, math.sqrt(self.size) * self.sensitivity
        variance = self.variance
        rho = squared / (2 * variance)
        fine = rho + squared / (2 * variance**2), max(0.0, (6 * l1 - squared) / (4 * variance**2))
        coarse = rho, 3 * l1 / (2 * variance)
        rho, xi = min(fine, coarse, key=lambda bound: bound[0] * 8 + bound[1])  # the smaller at order 8; both are valid
        return dp_accounting.ZCDpEvent(rho=rho, xi=xi)

    @property
    def curve(self) -> Array64:
        """Rényi bounds of all sums together, at each order in ``_ORDERS``."""
        accountant = rdp.RdpAccountant(_ORDERS)
        accountant.compose(self.event)
        one: Array64 = accountant.rdp
        return self.times * one


def epsilon(releases: Sequence[Release], delta: float) -> float:
    """The ε of all releases together at ``delta``, for an example that takes part in all of them."""
    total = sum((release.curve for release in releases), np.zeros(len(_ORDERS)))
    return float(rdp.compute_epsilon(_ORDERS, total, delta)[0])


def noise_multiplier(target: float, delta: float, releases: Callable[[float], Sequence[Release]]) -> float:
    """The smallest noise, as a multiple of the sensitivity, with which ``releases`` cost at most ε = ``target``.

    ``releases`` gives the releases for a standard deviation of the noise that is a given multiple of the sensitivity.

    Raises:
        ValueError: no noise in the range suffices, or none is needed.
    """

    def excess(logarithm: float) -> float:
        return epsilon(releases(math.exp(logarithm)), delta) - target

    precision = 1e-6
    root = brentq(excess, math.log(_LEAST), math.log(_MOST), xtol=precision)
    return math.exp(float(root) + 2 * precision)  # rounded up


@dataclass(frozen=True)
class Budget:
    """An owner's privacy budget. It is immutable: spending gives a new budget.

    Attributes:
        epsilon: the largest ε that may be spent.
        delta: δ.
        spent: past releases, in order; ``dataclasses.asdict`` of each is JSON for a ledger.
    """

    epsilon: float
    delta: float
    spent: tuple[Release, ...] = ()

    @property
    def spent_epsilon(self) -> float:
        """The ε of all past releases."""
        return epsilon(self.spent, self.delta)

    def after(self, release: Release) -> Self:
        """The budget after ``release``; call this before it is sent.

        Raises:
            BudgetSpentError: it costs more than is left; nothing is spent.
        """
        after = replace(self, spent=(*self.spent, release))
        if after.spent_epsilon > self.epsilon:
            raise BudgetSpentError(
                f"privacy budget: with this release ε would be {after.spent_epsilon:.2f} of {self.epsilon:g} at δ "
                f"{self.delta:g} ({self.spent_epsilon:.2f} are spent), so nothing is sent. Raise the budget in the owner's "
                "policy, or keep the present adapter"
            )
        return after
