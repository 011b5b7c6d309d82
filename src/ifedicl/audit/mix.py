"""Attack 3: how many examples of each class does a client hold? The attacker fits a mean with class means of public text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from ifedicl.audit.defence import Defence
from ifedicl.core.vectors import Array64

_SUM_WEIGHT = 100.0  # weight of the condition that shares sum to 1


@dataclass(frozen=True)
class MixGuess:
    """Error of an attacker.

    Attributes:
        examples: examples in each sum.
        error: mean total variation between the guessed and the true mix; from 0 (exact) to 1.
        blind: the same error of a guess of equal shares.
        groups: attacked sums.
    """

    examples: int
    error: float
    blind: float
    groups: int


def class_means(rows: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], classes: int) -> Array64:
    """``(C, D)`` mean of each class of public text."""
    return np.stack([rows[labels == label].mean(axis=0, dtype=np.float64) for label in range(classes)])


class Span:
    """The directions in which class means differ; least squares depends on these alone."""

    def __init__(self, means: Array64) -> None:
        """From ``(C, D)`` class means, scaled by the distance between the classes."""
        self._spread = max(float(np.linalg.norm(means - means.mean(axis=0))), 1e-30)
        self._centre = means.mean(axis=0)
        self._basis, triangle = np.linalg.qr(((means - self._centre) / self._spread).T)
        self._system = np.concatenate([triangle, np.full((1, len(means)), _SUM_WEIGHT)])

    def within(self, rows: npt.NDArray[np.floating]) -> Array64:
        """``(..., C)`` coordinates of ``(..., D)`` rows; linear."""
        return np.asarray((rows @ self._basis) / self._spread)

    def mixture(self, within: Array64) -> Array64:
        """``(C,)`` shares, at least 0 and with sum 1, that fit a mean with ``(C,)`` coordinates best."""
        shares = nnls(self._system, np.array([*(within - self.within(self._centre)), _SUM_WEIGHT]))[0]
        return np.asarray(shares / max(float(shares.sum()), 1e-30))


def mix_attack(
    rows: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    means: Array64,
    examples: int,
    defence: Defence,
    *,
    groups: int,
    draw: np.random.Generator,
    clients: int = 1,
) -> MixGuess:
    """Draw clients with uneven mixes (Dirichlet 0.5) and guess their mixes.

    Each client gets ``examples`` of the ``(N, D)`` rows with ``(N,)`` labels; ``means`` are the ``(C, D)`` class means. A
    secure sum covers ``clients`` clients; the attacker uses the mix of the sum as that of each client.
    """
    classes, span = len(means), Span(means)
    clipped = span.within(defence.clipped(rows))
    errors, blind = [], []
    for _ in range(groups):
        dealt = [_client_examples(labels, classes, examples, draw) for _ in range(clients)]
        total = clipped[np.concatenate(dealt)].sum(axis=0)
        if not defence.is_none:
            total = total + span.within(defence.noise(rows.shape[1], draw))
        guess = span.mixture(total / (examples * clients))
        truth = np.bincount(labels[dealt[0]], minlength=classes) / examples
        errors.append(np.abs(guess - truth).sum() / 2)
        blind.append(np.abs(1 / classes - truth).sum() / 2)
    return MixGuess(examples, float(np.mean(errors)), float(np.mean(blind)), groups)


def _client_examples(
    labels: npt.NDArray[np.int64], classes: int, examples: int, draw: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions of one client's examples, with repetition if a class has too few."""
    counts = draw.multinomial(examples, draw.dirichlet(np.full(classes, 0.5)))
    parts = [
        draw.choice(np.flatnonzero(labels == label), size=count, replace=count > int((labels == label).sum()))
        for label, count in enumerate(counts)
        if count
    ]
    return np.concatenate(parts)
