"""Attack 4: what do two versions of a client's vectors reveal about the examples that were added between them?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.audit.defence import Defence


@dataclass(frozen=True)
class Differenced:
    """What two versions reveal about the added examples.

    Attributes:
        examples: examples in the first version.
        added: additional examples in the second version.
        cosine: mean cosine between the difference and the sum of the added examples.
        named: share of trials in which the attacker picks an added example out of all candidates.
        chance: the same share for a random pick.
        trials: pairs of versions.
    """

    examples: int
    added: int
    cosine: float
    named: float
    chance: float
    trials: int


def attack_difference(
    rows: npt.NDArray[np.floating],
    centre: npt.NDArray[np.floating],
    examples: int,
    added: int,
    defence: Defence,
    *,
    trials: int,
    draw: np.random.Generator,
) -> Differenced:
    """Subtract pairs of versions as sent: float32 means and their numbers of examples.

    All ``(N, D)`` rows are candidates; ``centre`` is the ``(D,)`` mean of public text, subtracted before rows are compared.
    """
    centred = rows - centre
    directions = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30)
    clipped = defence.clipped(rows)
    cosines, named = [], []
    for _ in range(trials):
        both = draw.choice(len(rows), size=examples + added, replace=False)
        old, new = both[:examples], both[examples:]
        first = (defence.noisy_sum(clipped[old], draw) / examples).astype(np.float32)
        second = (defence.noisy_sum(clipped[both], draw) / len(both)).astype(np.float32)
        found = second.astype(np.float64) * len(both) - first.astype(np.float64) * examples - added * centre
        truth = centred[new].sum(axis=0)
        cosines.append(found @ truth / max(float(np.linalg.norm(found) * np.linalg.norm(truth)), 1e-30))
        named.append(int(np.argmax(directions @ found)) in new)
    return Differenced(examples, added, float(np.mean(cosines)), float(np.mean(named)), added / len(rows), trials)
