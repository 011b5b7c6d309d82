"""What a game of guesses proves: AUC, and lower bounds of ε that hold with 95% confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

_CONFIDENCE = 0.95
_LOW_RATE = 0.01


@dataclass(frozen=True)
class Game:
    """How well an attacker tells two worlds apart.

    Attributes:
        trials: how often it was asked.
        auc: probability that it scores a world with the example above one without; 0.5 is guessing.
        caught: share of the worlds with the example that it names while it is wrong in 1% of those without.
        bound: the mechanism's ε is at least this, with 95% confidence, whatever was promised; 0: nothing is proven.
    """

    trials: int
    auc: float
    caught: float
    bound: float


def judged(inside: npt.NDArray[np.floating], outside: npt.NDArray[np.floating], delta: float) -> Game:
    """From the attacker's scores in worlds with and without the example; higher means "it is there".

    The threshold is chosen on the first half of the trials, and the bound computed on the other: it is not its own judge.

    Args:
        inside: ``(N,)`` scores.
        outside: ``(N,)`` scores.
        delta: δ of the promise.
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
    """Clopper-Pearson: (ε, δ) promises ``TPR ≤ e^ε FPR + δ`` and ``TNR ≤ e^ε FNR + δ``."""
    named, wrongly = int((inside >= threshold).sum()), int((outside >= threshold).sum())
    bounds = [
        _log_ratio(_lower(named, len(inside)) - delta, _upper(wrongly, len(outside))),
        _log_ratio(_lower(len(outside) - wrongly, len(outside)) - delta, _upper(len(inside) - named, len(inside))),
    ]
    return max(bounds)


def _log_ratio(above: float, below: float) -> float:
    return math.log(above / below) if above > 0 else -math.inf


def _lower(successes: int, trials: int) -> float:
    """Both rates are bounded at once, so each takes half of what may go wrong."""
    return 0.0 if successes == 0 else float(stats.beta.ppf((1 - _CONFIDENCE) / 2, successes, trials - successes + 1))


def _upper(successes: int, trials: int) -> float:
    return 1.0 if successes == trials else float(stats.beta.ppf(1 - (1 - _CONFIDENCE) / 2, successes + 1, trials - successes))


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, *, doubt: float = 1 - _CONFIDENCE) -> float:
    """A lower bound of ε from a single run in which each canary was put in by a coin.

    Steinke, Nasr and Jagielski 2023, theorem 5.2 and its appendix D.

    Args:
        canaries: ``m``, each in or out by its own fair coin.
        guesses: ``r``, on how many the attacker spoke out.
        right: ``v``, how many of these it had right.
        delta: δ of the promise.
        doubt: probability with which the bound may be wrong.
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
    """:func:`one_run_epsilon` of an attacker that calls its highest scores in and its lowest out.

    Args:
        scores: ``(m,)`` of the canaries.
        present: ``(m,)``: which were in.
        delta: δ of the promise.

    Returns:
        The best bound over several numbers of guesses, each computed with its share of the 5% that may go wrong.
    """
    order = np.argsort(scores)
    numbers = sorted({max(1, int(len(scores) * share)) for share in (0.05, 0.15, 0.5)})
    bounds = []
    for number in numbers:
        right = int(present[order[-number:]].sum() + (~present[order[:number]]).sum())
        bounds.append(one_run_epsilon(len(scores), 2 * number, right, delta, doubt=(1 - _CONFIDENCE) / len(numbers)))
    return max(bounds)
