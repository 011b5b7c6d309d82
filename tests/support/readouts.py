"""Sums of a readout over made-up examples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.refinement import Products, Refinement
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


def asked_products(features: int = 6, columns: int = 2) -> Refinement:
    """Random directions about a random centre."""
    draw = np.random.default_rng(features)
    directions = np.linalg.qr(draw.normal(size=(features, columns)))[0]
    return Refinement(draw.normal(size=features).astype(np.float16), directions.astype(np.float16))


def drawn_products(examples: int, features: int = 6, columns: int = 2) -> Products:
    """The products that :func:`asked_products` asks for, over random examples."""
    rows = np.random.default_rng(examples).normal(size=(examples, features))
    return Products.of(rows, Units.none(features), asked_products(features, columns))
