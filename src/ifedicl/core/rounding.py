"""Rounding up or down by chance, so that sums of clients have no bias."""

from __future__ import annotations

import hashlib

import numpy as np

from ifedicl import seeds
from ifedicl.core.vectors import Array64


def dither(numbers: Array64, shape: tuple[int, ...]) -> Array64:
    """Draws from -0.5 to 0.5: the same for the same ``numbers``, and independent of those of other clients."""
    named = hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()
    return seeds.generator(0, "rounding", named).uniform(-0.5, 0.5, shape)
