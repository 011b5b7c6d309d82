"""Penalties of a readout's ridge regression, and how they differ between its features."""

from __future__ import annotations

import numpy as np

from ifedicl.core.vectors import Array64

PENALTIES = (0.5, 2.0, 8.0, 32.0, 128.0)
"""Ridge penalties of all weights but the intercept, in units of each feature's scatter, as if features were standardised."""
MIDDLE_PENALTY = 3.0
"""At which refinements are asked for."""
_ELSEWHERE = 100.0
"""Times the penalty of text means at other depths than the middle one, in every second readout that is tried."""


def emphases(features: int, classes: int, depths: int) -> list[Array64]:
    """Factors of each feature's penalty, ``(F,)`` each: 1, and one that leaves little but the text means of the middle depth.

    Which is better depends on the task: topics show at several depths, moods at the middle one.

    Args:
        features: ``F``, those of the last hidden state, of text means at each depth, and of the label words.
        classes: of the label words.
        depths: of text means; with fewer than two all are the same.
    """
    if depths < 2:
        return [np.ones(features)]
    width, middle = (features - classes) // (1 + depths), depths // 2
    states = [1.0, *(1.0 if depth == middle else _ELSEWHERE for depth in range(depths))]
    return [np.ones(features), np.concatenate([np.repeat(states, width), np.ones(classes)])]


def readout_count(depths: int) -> int:
    """How many readouts follow from sums with text means at so many depths."""
    return len(PENALTIES) * len(emphases(1 + depths, 0, depths))
