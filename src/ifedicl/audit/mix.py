"""Attack 3: how many of a client's examples are of each class? Read off a mean by the class means of public text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from ifedicl.audit.defence import Defence
from ifedicl.core.vectors import Array64

_SUM_WEIGHT = 100.0  # how strongly shares are made to sum to 1


@dataclass(frozen=True)
class MixGuess:
    """How near an attacker comes.

    Attributes:
        examples: behind each sum.
        error: mean total variation between the guessed and the true mix; 0 is exact, 1 all wrong.
        blind: the same of who always guesses equal shares.
        groups: sums that were attacked.
    """

    examples: int
    error: float
    blind: float
    groups: int


def class_means(rows: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], classes: int) -> Array64:
    """``(C, D)`` of public text under each label word."""
    means: Array64 = np.stack([rows[labels == label].mean(axis=0, dtype=np.float64) for label in range(classes)])
    return means


class Span:
    """The directions in which class means differ: a mixture of them shows there, and least squares sees nothing else."""

    def __init__(self, means: Array64) -> None:
        """Of ``(C, D)`` class means."""
        # Scaled to what tells the classes apart.
        self._spread = max(float(np.linalg.norm(means - means.mean(axis=0))), 1e-30)
        self._centre = means.mean(axis=0)
        self._basis, triangle = np.linalg.qr(((means - self._centre) / self._spread).T)
        self._system = np.concatenate([triangle, np.full((1, len(means)), _SUM_WEIGHT)])

    def within(self, rows: npt.NDArray[np.floating]) -> Array64:
        """``(..., C)`` coordinates of ``(..., D)`` rows; linear."""
        within: Array64 = (rows @ self._basis) / self._spread
        return within

    def mixture(self, within: Array64) -> Array64:
        """``(C,)`` shares, at least 0 and 1 in sum, of which a mean with ``(C,)`` coordinates is most likely made."""
        shares = nnls(self._system, np.array([*(within - self.within(self._centre)), _SUM_WEIGHT]))[0]
        result: Array64 = shares / max(float(shares.sum()), 1e-30)
        return result


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
    """Draw clients with uneven mixes (Dirichlet 0.5) and guess them.

    Args:
        rows: ``(N, D)`` of the owner's examples.
        labels: ``(N,)``.
        means: ``(C, D)`` of :func:`class_means`.
        examples: of each client.
        defence: how its sum leaves.
        groups: how many are drawn.
        draw: of clients and noise.
        clients: in one secure sum; the attacker takes the whole sum's mix for that of each.
    """
    classes, span = len(means), Span(means)
    kept = span.within(defence.kept(rows))
    errors, blind = [], []
    for _ in range(groups):
        hands = [_hand(labels, classes, examples, draw) for _ in range(clients)]
        total = kept[np.concatenate(hands)].sum(axis=0)
        if not defence.is_none:
            total = total + span.within(defence.noise(rows.shape[1], draw))
        guess = span.mixture(total / (examples * clients))
        truth = np.bincount(labels[hands[0]], minlength=classes) / examples
        errors.append(np.abs(guess - truth).sum() / 2)
        blind.append(np.abs(1 / classes - truth).sum() / 2)
    return MixGuess(examples, float(np.mean(errors)), float(np.mean(blind)), groups)


def _hand(labels: npt.NDArray[np.int64], classes: int, examples: int, draw: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions of one client's examples, with repetition where a class runs out."""
    counts = draw.multinomial(examples, draw.dirichlet(np.full(classes, 0.5)))
    parts = [
        draw.choice(np.flatnonzero(labels == label), size=count, replace=count > int((labels == label).sum()))
        for label, count in enumerate(counts)
        if count
    ]
    return np.concatenate(parts)
