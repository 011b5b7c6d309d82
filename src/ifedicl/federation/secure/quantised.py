"""Layout and fixed-point format of the replies in a secure sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ifedicl.core.vectors import Array64
from ifedicl.federation import messages
from ifedicl.federation.messages import Request
from ifedicl.federation.reply_sums import SUM_RULES, Parts, SumRule
from ifedicl.secagg.fixed_point import FixedPoint


@dataclass(frozen=True)
class Sum:
    """How the replies to one kind of request are summed: the rule of open mode, and a fixed-point format."""

    rule: SumRule[Any]
    grid: FixedPoint


def layout_of(parts: Parts) -> messages.Layout:
    """Names and shapes, in order."""
    return {name: np.shape(part) for name, part in parts.items()}


def count_of(layout: messages.Layout) -> int:
    """How many numbers a layout has."""
    return sum(math.prod(shape) for shape in layout.values())


def shaped(numbers: Array64, layout: messages.Layout) -> dict[str, Array64]:
    """The parts of :func:`flat`."""
    ends = np.cumsum([math.prod(shape) for shape in layout.values()])[:-1]
    return {name: part.reshape(layout[name]) for name, part in zip(layout, np.split(numbers, ends), strict=True)}


SUMS: Mapping[type[Request], Sum] = {
    messages.VectorsRequest: Sum(SUM_RULES[messages.VectorsReply], FixedPoint(40, 12)),
    messages.UpdateRequest: Sum(SUM_RULES[messages.UpdateReply], FixedPoint(48, 24)),
    messages.GradientRequest: Sum(SUM_RULES[messages.GradientReply], FixedPoint(48, 24)),
    messages.EvaluateRequest: Sum(SUM_RULES[messages.EvaluateReply], FixedPoint(48, 20)),
    messages.StatisticsRequest: Sum(SUM_RULES[messages.StatisticsReply], FixedPoint(56, 24)),
    messages.NoisyStatisticsRequest: Sum(SUM_RULES[messages.NoisyStatisticsReply], FixedPoint(40, 16)),
    messages.CompareRequest: Sum(SUM_RULES[messages.CompareReply], FixedPoint(48, 20)),
}
"""By request. ``FixedPoint(bits, fraction)`` holds sums up to ``2^(bits - 1 - fraction)``: 134 million for vectors, which are
most of the traffic. Products of features have fine steps, because a linear system is solved with them.
"""

STEPS: Mapping[str, float] = {request.kind: summed.grid.step for request, summed in SUMS.items()}
"""Step of the fixed point, by kind of request."""
