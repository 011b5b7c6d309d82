"""How prompts are grouped into forward passes: as much in one as pays, by length, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class PassBudget:
    """How prompts are grouped into forward passes.

    Attributes:
        tokens: most tokens in one pass, padding included. More only adds padding on a CPU; a GPU is faster if it is full.
        overhead: the fixed cost of a pass (weights are read, modules called), in tokens.
        remembered: most tokens whose keys and values are in memory at once, if prompts share a beginning.
    """

    tokens: int
    overhead: int
    remembered: int

    def within(self, tokens: int) -> PassBudget:
        """The budget with at most so many tokens in a pass."""
        return replace(self, tokens=min(self.tokens, tokens))


BUDGETS = {
    "cpu": PassBudget(tokens=512, overhead=80, remembered=8_192),
    "cuda": PassBudget(tokens=16_384, overhead=2_048, remembered=65_536),
}
"""By the type of the device."""


def length_batches(lengths: Sequence[int], budget: PassBudget) -> list[list[int]]:
    """Positions in groups of similar length, longest first: the groups with the least cost of padding and overhead.

    A sequence of more than ``budget.tokens`` tokens is a group by itself.
    """
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    widths = np.array([lengths[position] for position in order], dtype=np.int64)
    cost, begin = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=np.int64)  # of the best groups of the first n
    for end in range(1, len(order) + 1):
        most = max(1, budget.tokens // int(widths[end - 1]))
        starts = np.arange(max(0, end - most), end)
        tokens = (end - starts) * widths[starts]
        fits = (tokens <= budget.tokens) | (starts == end - 1)
        total = np.where(fits, cost[starts] + tokens + budget.overhead, np.inf)
        best = int(total.argmin())
        cost[end], begin[end] = total[best], starts[best]
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[begin[end] : end])
        end = int(begin[end])
    return groups[::-1]
