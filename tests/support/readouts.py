"""Sums of a readout over made-up examples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.sketch import Directions
from ifedicl.core.units import Units
from ifedicl.core.vectors import Array64


def sums_of(
    rows: Array64, labels: npt.NDArray[np.integer], classes: int = 2, *, states: int = 1, directions: int = 128
) -> ReadoutSums:
    """Sums over ``(N, F)`` rows: so many states, then label words. With few features the sketch is the Gram matrix."""
    drawn = directions_of(rows.shape[1], classes, states=states, directions=directions)
    return ReadoutSums.of(rows, labels, classes, Units.none(rows.shape[1]), drawn)


def directions_of(features: int, classes: int, *, states: int = 1, directions: int = 128) -> Directions:
    """The directions of :func:`sums_of`."""
    return Directions.of([(features - classes) // states] * states, classes, directions, 0)


def drawn_sums(examples: int, features: int = 6, classes: int = 2) -> ReadoutSums:
    """Sums over random examples, equally many of each label."""
    rows = np.random.default_rng(examples).normal(size=(examples, features))
    return sums_of(rows, np.arange(examples) % classes, classes)
