"""Attack 2: was this very example among those behind a sum?

A trial draws the other examples and tosses a coin for the one in question (the canary). Two attackers: the *outsider* knows the
canary, the model and public text; the *insider*, whom differential privacy speaks of, knows all other examples too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.audit.defence import DELTA, Defence
from ifedicl.audit.guessing import Game, judged
from ifedicl.core.vectors import Array32, Array64

_DIRECTIONS = 128  # of public text's variance that the outsider discounts, at most


@dataclass(frozen=True)
class Filters:
    """An attacker that is linear: its score is ``(released · direction - offset) / length``, of each example as the canary.

    Attributes:
        directions: ``(N, D)``.
        offsets: ``(N,)``.
        lengths: ``(N,)``: around these, the score of a canary that is there is 1 above that of one that is not.
        knows_others: whether the others' sum is taken off first.
    """

    directions: Array32
    offsets: Array64
    lengths: Array64
    knows_others: bool


def insider(kept: Array32) -> Filters:
    """What is left of the sum without the others, along the canary: the likelihood ratio under isotropic noise.

    Args:
        kept: ``(N, D)``: what of each example goes into a sum.
    """
    lengths = np.maximum(np.square(kept, dtype=np.float64).sum(axis=1), 1e-30)
    return Filters(kept, np.zeros(len(kept)), lengths, knows_others=True)


class Outsider:
    """Along the canary, discounting the directions in which all text varies (a whitened matched filter)."""

    def __init__(self, public: npt.NDArray[np.floating]) -> None:
        """Learn what texts are like.

        Args:
            public: ``(N, D)`` rows of public text.
        """
        self._centre = public.mean(axis=0, dtype=np.float64).astype(np.float32)
        # Fewer rows than numbers: the small matrix of their products has the same strengths.
        centred = (public - self._centre).astype(np.float32)
        strengths, mixes = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        variances = np.maximum(strengths[::-1], 0) / len(public)
        count = min(_DIRECTIONS, min(public.shape) // 4)
        floor = max(float(variances[count:].sum()) / (public.shape[1] - count), 1e-12)
        norms = np.sqrt(np.maximum(strengths[::-1][:count], 1e-30))[:, None]
        self._directions = ((mixes[:, ::-1][:, :count].T @ centred) / norms).astype(np.float32)
        self._discount = (variances[:count] / (variances[:count] + floor)).astype(np.float32)

    def filters(self, kept: Array32, examples: int) -> Filters:
        """Of sums of so many examples.

        Args:
            kept: ``(N, D)``: what of each example goes into a sum.
            examples: how many are in one.
        """
        along = kept - self._centre
        directions = along - ((along @ self._directions.T) * self._discount) @ self._directions
        lengths = np.maximum((along * directions).sum(axis=1, dtype=np.float64), 1e-30)
        return Filters(directions, examples * (directions @ self._centre).astype(np.float64), lengths, knows_others=False)


def played(
    kept: Array32, examples: int, defence: Defence, attacker: Filters, *, trials: int, draw: np.random.Generator
) -> Game:
    """The canary game.

    Args:
        kept: ``(N, D)``: what of each of the owner's examples goes into a sum; more than ``examples``.
        examples: how many are in a sum, the canary (or one more other) included.
        defence: how it leaves.
        attacker: its filters for these rows.
        trials: half of them with the canary, half without.
        draw: of canaries, others and noise.
    """
    # A sum's product with a direction is the sum of its members' products.
    products = (kept @ attacker.directions.T).astype(np.float64)  # (member, canary)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for trial in range(trials):
        present = trial % 2 == 0
        canary, other, *others = draw.choice(len(kept), size=examples + 1, replace=False).tolist()
        # Without the canary its place stays empty for the insider, and is another's for the outsider.
        stands_in = [] if attacker.knows_others else [other]
        along = products[[*others, *([canary] if present else stands_in)], canary].sum() - attacker.offsets[canary]
        if attacker.knows_others:
            along -= products[others, canary].sum()
        if not defence.is_none:
            along += defence.noise(kept.shape[1], draw) @ attacker.directions[canary]
        scores[present].append(float(along) / float(attacker.lengths[canary]))
    return judged(np.array(scores[True]), np.array(scores[False]), DELTA)
