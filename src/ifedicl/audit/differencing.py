"""Attack 4: what does a second version of a client's vectors say about the examples added between the two?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.audit.defence import Defence


@dataclass(frozen=True)
class Differenced:
    """How much of the added examples two versions show.

    Attributes:
        examples: in the first version.
        added: in the second, more.
        cosine: mean, between the difference and the sum of what was added.
        named: share of the trials in which an added example is picked out of all candidates.
        chance: the same of who picks at random.
        trials: how many pairs of versions.
    """

    examples: int
    added: int
    cosine: float
    named: float
    chance: float
    trials: int


def differenced(
    rows: npt.NDArray[np.floating],
    centre: npt.NDArray[np.floating],
    examples: int,
    added: int,
    defence: Defence,
    *,
    trials: int,
    draw: np.random.Generator,
) -> Differenced:
    """Subtract pairs of versions, as they leave: means in float32 and how many examples they are of.

    Args:
        rows: ``(N, D)`` of the owner's examples; all of them are candidates.
        centre: ``(D,)``: public text's mean, taken off before rows are compared.
        examples: in the first version.
        added: in the second, more.
        defence: how both versions leave.
        trials: how many pairs.
        draw: of examples and noise.
    """
    centred = rows - centre
    directions = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30)
    kept = defence.kept(rows)
    cosines, named = [], []
    for _ in range(trials):
        places = draw.choice(len(rows), size=examples + added, replace=False)
        old, new = places[:examples], places[examples:]
        first = (defence.released(kept[old], draw) / examples).astype(np.float32)
        second = (defence.released(kept[places], draw) / len(places)).astype(np.float32)
        found = second.astype(np.float64) * len(places) - first.astype(np.float64) * examples - added * centre
        truth = centred[new].sum(axis=0)
        cosines.append(found @ truth / max(float(np.linalg.norm(found) * np.linalg.norm(truth)), 1e-30))
        named.append(int(np.argmax(directions @ found)) in new)
    return Differenced(examples, added, float(np.mean(cosines)), float(np.mean(named)), added / len(rows), trials)
