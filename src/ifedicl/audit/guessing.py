"""Success of an attacker: AUC, and lower bounds of ε that hold with 95% confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from ifedicl.dp.accountant import Release
from ifedicl.dp.skellam import skellam

_CONFIDENCE = 0.95
_BATCH = 256
"""Sums whose noise is in memory at once."""
_LOW_RATE = 0.01


@dataclass(frozen=True)
class Game:
    """How well an attacker distinguishes sums with an example from sums without it.

    Attributes:
        trials: number of sums.
        auc: probability that a sum with the example scores above one without it; 0.5 is guessing.
        caught: true positive rate at 1% false positives.
        bound: lower bound of the mechanism's ε with 95% confidence; 0 proves nothing.
    """

    trials: int
    auc: float
    caught: float
    bound: float


def game_of(inside: npt.NDArray[np.floating], outside: npt.NDArray[np.floating], delta: float) -> Game:
    """The game with ``(N,)`` scores of sums with the example (``inside``) and without it (``outside``).

    The first half of the trials chooses the threshold, the second half gives the bound: they are independent.
    """
    ranks = stats.rankdata(np.concatenate([inside, outside]))[: len(inside)].sum()
    auc = (ranks - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside))
    caught = float((inside > np.quantile(outside, 1 - _LOW_RATE)).mean())
    half_in, half_out = len(inside) // 2, len(outside) // 2
    first, second = (inside[:half_in], outside[:half_out]), (inside[half_in:], outside[half_out:])
    thresholds = np.unique(np.concatenate(first))
    thresholds = thresholds[np.linspace(0, len(thresholds) - 1, min(len(thresholds), 200)).astype(int)]
    best = max(thresholds, key=lambda threshold: _bound(*first, threshold, delta))
    return Game(len(inside) + len(outside), float(auc), caught, max(0.0, _bound(*second, best, delta)))


def _bound(inside: npt.NDArray[np.floating], outside: npt.NDArray[np.floating], threshold: float, delta: float) -> float:
    """Clopper-Pearson: (ε, δ)-DP implies ``TPR ≤ e^ε FPR + δ`` and ``TNR ≤ e^ε FNR + δ``."""
    true, false = int((inside >= threshold).sum()), int((outside >= threshold).sum())
    return max(
        _log_ratio(_lower(true, len(inside)) - delta, _upper(false, len(outside))),
        _log_ratio(_lower(len(outside) - false, len(outside)) - delta, _upper(len(inside) - true, len(inside))),
    )


def _log_ratio(above: float, below: float) -> float:
    return math.log(above / below) if above > 0 else -math.inf


def _lower(successes: int, trials: int) -> float:
    """Lower bound of a rate. Two rates are bounded at once, so each gets half of the error probability."""
    return 0.0 if successes == 0 else float(stats.beta.ppf((1 - _CONFIDENCE) / 2, successes, trials - successes + 1))


def _upper(successes: int, trials: int) -> float:
    return 1.0 if successes == trials else float(stats.beta.ppf(1 - (1 - _CONFIDENCE) / 2, successes + 1, trials - successes))


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, *, doubt: float = 1 - _CONFIDENCE) -> float:
    """A lower bound of ε from a single run that includes each canary with probability 1/2.

    Steinke, Nasr and Jagielski 2023, theorem 5.2 and its appendix D.

    Args:
        canaries: ``m``, all canaries.
        guesses: ``r``, canaries for which the attacker guesses.
        right: ``v``, correct guesses.
        delta: δ of the guarantee.
        doubt: error probability of the bound.
    """

    def p_value(epsilon: float) -> float:
        right_by_chance = 1 / (1 + math.exp(-epsilon))
        beta = float(stats.binom.sf(right - 1, guesses, right_by_chance))
        below = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, right_by_chance))
        alpha = float(np.max(below / np.arange(1, right + 1), initial=0.0))
        return min(1.0, beta + 2 * canaries * delta * alpha)

    if p_value(0.0) > doubt:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(high) <= doubt and high < 64:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle) <= doubt else (low, middle)
    return low


def one_run(scores: npt.NDArray[np.floating], present: npt.NDArray[np.bool_], delta: float) -> float:
    """Lower bound of ε from the ``(m,)`` scores of the canaries and whether each is ``present``.

    The attacker guesses that the highest scores are present and the lowest absent. The result is the best
    :func:`one_run_epsilon` over several numbers of guesses, each with its share of the 5% error probability.
    """
    order = np.argsort(scores)
    numbers = sorted({max(1, int(len(scores) * share)) for share in (0.05, 0.15, 0.5)})
    bounds = []
    for number in numbers:
        right = int(present[order[-number:]].sum() + (~present[order[:number]]).sum())
        bounds.append(one_run_epsilon(len(scores), 2 * number, right, delta, doubt=(1 - _CONFIDENCE) / len(numbers)))
    return max(bounds)


def game_of_releases(
    releases: Sequence[Release], delta: float, trials: int, draw: np.random.Generator, *, variance: float = 1.0
) -> Game:
    """The game of an attacker who knows all other examples, and an example that adds as much as it may to each sum.

    Its score is the best for nearly normal noise: the product of what the example adds with each sum, over the variance.

    Args:
        releases: all noisy sums that the example is in.
        delta: δ of the guarantee.
        trials: number of sums with the example, and as many without it.
        draw: of the noise and of the direction in which the example adds.
        variance: factor of the noise's variance; below 1 the guarantee does not hold.
    """
    scores = np.zeros((2, trials))
    for release in releases:
        row = draw.standard_normal(release.size)
        row *= release.sensitivity / np.linalg.norm(row)
        for _ in range(release.times):
            for number, present in enumerate((1, 0)):
                for first in range(0, trials, _BATCH):
                    count = min(_BATCH, trials - first)
                    noise = skellam(count * release.size, variance * release.variance, draw).reshape(count, -1)
                    scores[number, first : first + count] += (noise + present * row) @ row / release.variance
    return game_of(scores[0], scores[1], delta)
