"""Sums over replies in fixed point, as a secure sum needs them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ifedicl.core.vectors import Array64
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    EvaluateReply,
    EvaluateRequest,
    GradientReply,
    GradientRequest,
    Layout,
    Request,
    StatisticsReply,
    StatisticsRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
)
from ifedicl.federation.reply_sums import Parts, SumRule, sum_rule
from ifedicl.secagg.fixed_point import FixedPoint


@dataclass(frozen=True)
class Sum:
    """How the replies to one kind of request are summed.

    Attributes:
        rule: as in open mode.
        fraction: bits behind the point: sums of large numbers need fewer, small gradients more.
        bits: of each number on the wire.
    """

    rule: SumRule[Any]
    fraction: int
    bits: int

    @property
    def grid(self) -> FixedPoint:
        """Which numbers can be said."""
        return FixedPoint(self.bits, self.fraction)


def layout_of(parts: Parts) -> Layout:
    """Names and shapes, in order."""
    return {name: np.shape(part) for name, part in parts.items()}


def count_of(layout: Layout) -> int:
    """How many numbers."""
    return sum(math.prod(shape) for shape in layout.values())


def flat(parts: Parts) -> Array64:
    """All numbers in a row."""
    return np.concatenate([np.ravel(np.asarray(part, dtype=np.float64)) for part in parts.values()])


def shaped(numbers: Array64, layout: Layout) -> dict[str, Array64]:
    """The inverse of :func:`flat`."""
    ends = np.cumsum([math.prod(shape) for shape in layout.values()])[:-1]
    return {name: part.reshape(layout[name]) for name, part in zip(layout, np.split(numbers, ends), strict=True)}


SUMS: Mapping[type[Request], Sum] = {
    VectorsRequest: Sum(sum_rule(VectorsReply), 12, 40),
    UpdateRequest: Sum(sum_rule(UpdateReply), 24, 48),
    GradientRequest: Sum(sum_rule(GradientReply), 24, 48),
    EvaluateRequest: Sum(sum_rule(EvaluateReply), 20, 48),
    StatisticsRequest: Sum(sum_rule(StatisticsReply), 24, 56),
    CompareRequest: Sum(sum_rule(CompareReply), 20, 48),
}
"""How the answers to each kind of request are summed. A sum holds numbers up to ``2^(bits - 1 - fraction)``: of vectors, which
are most of what crosses, with 40 bits up to 134 million. Products of features are fine, as a linear system is solved with them.
"""

GRADIENT_STEP = 2.0 ** -SUMS[GradientRequest].fraction
"""Of the fixed point that gradients are summed in."""
