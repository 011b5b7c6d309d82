"""Attack 2: was this very example among those behind a sum?

A trial draws the other examples and tosses a coin for the one in question (the canary). Two attackers: the *outsider* knows the
canary, the model and public text; the *insider*, whom differential privacy speaks of, knows all other examples too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array32, Array64
from ifedicl.privacy.audit.defence import DELTA, Defence
from ifedicl.privacy.audit.guessing import Game, judged

_DIRECTIONS = 128  # of public text's variance that the outsider discounts, at most

Scorer: TypeAlias = Callable[[Array64, Array32, Array32], float]
"""A released sum, the canary's row, and the sum of the others (which only insiders look at) to "it is there"."""

_UNKNOWN = np.zeros(0, dtype=np.float32)


def insider(released: Array64, canary: Array32, others: Array32) -> float:
    """What is left of the sum without the others, along the canary: the likelihood ratio under isotropic noise."""
    return float((released - others) @ canary / max(float(canary @ canary), 1e-30))


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

    def among(self, examples: int) -> Scorer:
        """The attacker of sums of so many examples: around 1 if the canary is there, around 0 if not."""

        def score(released: Array64, canary: Array32, _others: Array32) -> float:
            along = canary - self._centre
            filtered = along - ((self._directions @ along) * self._discount) @ self._directions
            return float((released - examples * self._centre) @ filtered / max(float(along @ filtered), 1e-30))

        return score


def played(
    rows: npt.NDArray[np.floating],
    examples: int,
    defence: Defence,
    scorer: Scorer,
    *,
    trials: int,
    draw: np.random.Generator,
) -> Game:
    """The canary game.

    Args:
        rows: ``(N, D)`` of the owner's examples, more than ``examples``.
        examples: how many are in a sum, the canary (or one more other) included.
        defence: how it leaves.
        scorer: the attacker.
        trials: half of them with the canary, half without.
        draw: of canaries, others and noise.
    """
    kept = defence.kept(rows)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for trial in range(trials):
        present = trial % 2 == 0
        places = draw.choice(len(rows), size=examples + 1, replace=False)
        canary, others = int(places[0]), places[2:]
        # Without the canary its place stays empty for the insider, and is another's for the outsider.
        stands_in = [] if scorer is insider else [int(places[1])]
        members = np.array([*others, *([canary] if present else stands_in)], dtype=np.int64)
        released = defence.released(kept[members], draw)
        scores[present].append(scorer(released, kept[canary], kept[others].sum(axis=0) if scorer is insider else _UNKNOWN))
    return judged(np.array(scores[True]), np.array(scores[False]), DELTA)
