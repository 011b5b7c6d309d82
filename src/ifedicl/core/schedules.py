"""How a learning rate falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "constant": lambda _progress: 1.0,
}
"""From progress in [0, 1) to a factor of the learning rate."""
