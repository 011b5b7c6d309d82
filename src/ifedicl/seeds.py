"""Every random draw derives from a seed and a path of names, never from earlier draws.

So a run can be repeated and resumed bit for bit, and the order of the clients' replies changes no draw.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.random import Generator


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the draw named by ``path``, for instance ``derive(0, "calibrate", client, round)``."""
    text = "\x1f".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *path: str | int) -> Generator:
    """A numpy generator for the draw named by ``path``."""
    return np.random.default_rng(derive(seed, *path))


def unit(seed: int, *path: str | int) -> float:
    """A number in [0, 1) for ``path``, the same on every machine and at any time."""
    return derive(seed, *path) / 2**63
