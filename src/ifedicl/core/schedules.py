"""Learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping


def cosine(progress: float) -> float:
    """Half a cosine: 1 at the start, 0 at the end."""
    return (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: Mapping[str, Callable[[float], float]] = {"cosine": cosine, "constant": lambda _progress: 1.0}
"""From progress in [0, 1) to a factor of the learning rate."""
