"""Attack 2: does a sum include a given example (the canary)?

Each trial draws the other examples; half of the trials include the canary. Two attackers: the *outsider* knows the canary, the
model and public text; the *insider*, the attacker of differential privacy, knows all other examples too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.audit.defence import DELTA, Defence
from ifedicl.audit.guessing import Game, game_of
from ifedicl.core.vectors import Array32, Array64

_DIRECTIONS = 128  # maximum number of directions of public text's variance that the outsider discounts


@dataclass(frozen=True)
class Filters:
    """A linear attacker: with example ``n`` as the canary, its score is ``(sum · directions[n] - offsets[n]) / lengths[n]``.

    Attributes:
        directions: ``(N, D)``.
        offsets: ``(N,)``.
        lengths: ``(N,)``; they scale the scores so that including the canary adds about 1.
        knows_others: whether the attacker first subtracts the sum of the other examples.
    """

    directions: Array32
    offsets: Array64
    lengths: Array64
    knows_others: bool


def insider(clipped: Array32) -> Filters:
    """Likelihood ratio under isotropic noise, for ``(N, D)`` clipped rows: the sum without the others, along the canary."""
    lengths = np.maximum(np.square(clipped, dtype=np.float64).sum(axis=1), 1e-30)
    return Filters(clipped, np.zeros(len(clipped)), lengths, knows_others=True)


class Outsider:
    """A whitened matched filter: along the canary, with less weight on the directions in which all text varies."""

    def __init__(self, public: npt.NDArray[np.floating]) -> None:
        """Learn mean and variance of text from ``(N, D)`` rows of public text."""
        self._centre = public.mean(axis=0, dtype=np.float64).astype(np.float32)
        # N < D: the (N, N) matrix of products has the same eigenvalues as the (D, D) one.
        centred = (public - self._centre).astype(np.float32)
        eigenvalues, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        variances = np.maximum(eigenvalues[::-1], 0) / len(public)
        count = min(_DIRECTIONS, min(public.shape) // 4)
        floor = max(float(variances[count:].sum()) / (public.shape[1] - count), 1e-12)
        norms = np.sqrt(np.maximum(eigenvalues[::-1][:count], 1e-30))[:, None]
        self._directions = ((vectors[:, ::-1][:, :count].T @ centred) / norms).astype(np.float32)
        self._discount = (variances[:count] / (variances[:count] + floor)).astype(np.float32)

    def filters(self, clipped: Array32, examples: int) -> Filters:
        """The attacker on sums of ``examples`` of the ``(N, D)`` clipped rows."""
        along = clipped - self._centre
        directions = along - ((along @ self._directions.T) * self._discount) @ self._directions
        lengths = np.maximum((along * directions).sum(axis=1, dtype=np.float64), 1e-30)
        return Filters(directions, examples * (directions @ self._centre).astype(np.float64), lengths, knows_others=False)


def play_membership(
    clipped: Array32, examples: int, defence: Defence, attacker: Filters, *, trials: int, draw: np.random.Generator
) -> Game:
    """Play the canary game on ``(N, D)`` clipped rows; half of the trials include the canary.

    A sum has ``examples`` rows, the canary or its replacement included; N is larger than ``examples``.
    """
    # The product of a sum with a direction is the sum of the examples' products.
    products = (clipped @ attacker.directions.T).astype(np.float64)  # (example, canary)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for trial in range(trials):
        present = trial % 2 == 0
        canary, other, *others = draw.choice(len(clipped), size=examples + 1, replace=False).tolist()
        # Without the canary, another example replaces it for the outsider, and none for the insider.
        replacement = [] if attacker.knows_others else [other]
        along = products[[*others, *([canary] if present else replacement)], canary].sum() - attacker.offsets[canary]
        if attacker.knows_others:
            along -= products[others, canary].sum()
        if not defence.is_none:
            along += defence.noise(clipped.shape[1], draw) @ attacker.directions[canary]
        scores[present].append(float(along) / float(attacker.lengths[canary]))
    return game_of(np.array(scores[True]), np.array(scores[False]), DELTA)
