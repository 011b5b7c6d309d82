"""Replies as numbers that add up, and totals as replies again: what the coordinator would have made of all replies together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import ReadoutSums
from ifedicl.core.vectors import Array64, ContextVectors
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    EvaluateReply,
    EvaluateRequest,
    GradientReply,
    GradientRequest,
    Layout,
    Reply,
    Request,
    StatisticsReply,
    StatisticsRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
)
from ifedicl.metrics import Comparison, Tally
from ifedicl.privacy.secure_sum.fixed_point import FixedPoint
from ifedicl.settings import PrivacySettings

Parts: TypeAlias = Mapping[str, Any]
"""Arrays or numbers by name, all of them sums over examples."""


@dataclass(frozen=True)
class Sum:
    """One kind of reply.

    Attributes:
        fraction: bits behind the point: sums of large numbers need fewer, small gradients more.
        bits: of each number on the wire; None: as the rules say.
        apart: a client's reply as sums over its examples.
        together: the total of all clients as one reply; None where it is of no example.
    """

    fraction: int
    bits: int | None
    apart: Callable[[Any], Parts]
    together: Callable[[Mapping[str, Array64]], Reply | None]

    def grid(self, rules: PrivacySettings) -> FixedPoint:
        """Which numbers can be said."""
        return FixedPoint(self.bits or rules.bits, self.fraction)


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


def _vectors_apart(reply: VectorsReply) -> Parts:
    return {"counts": reply.vectors.counts, "sums": reply.vectors.sums}


def _vectors_together(total: Mapping[str, Array64]) -> Reply | None:
    vectors = ContextVectors.of_sums(total["sums"], np.rint(total["counts"]).astype(np.int64))
    return VectorsReply(vectors, cursor="", replaces=True, dtype="", wire_dtype="float32") if vectors.examples else None


def _update_apart(reply: UpdateReply) -> Parts:
    """Weighted by examples: the mean over clients is then that of the total (paper Eq. 7 with ``w_k = n_k``)."""
    arrays = {name: array.astype(np.float64) * reply.examples for name, array in reply.coefficients.arrays.items()}
    return {"examples": reply.examples, "loss": reply.loss * reply.examples, **arrays}


def _update_together(total: Mapping[str, Array64]) -> Reply | None:
    examples, arrays = _count(total["examples"]), _without(total, "examples", "loss")
    if not examples:
        return None
    means = {name: (array / examples).astype(np.float32) for name, array in arrays.items()}
    return UpdateReply(Coefficients.of(means), examples, float(total["loss"]) / examples)


def _gradient_apart(reply: GradientReply) -> Parts:
    return {"examples": reply.sums.examples, "loss": reply.sums.loss, **reply.sums.arrays}


def _gradient_together(total: Mapping[str, Array64]) -> Reply:
    arrays = {name: array.astype(np.float32) for name, array in _without(total, "examples", "loss").items()}
    return GradientReply(GradientSum(arrays, _count(total["examples"]), float(total["loss"])))


def _evaluate_apart(reply: EvaluateReply) -> Parts:
    return {"tallies": [_row(tally) for tally in reply.tallies]}


def _evaluate_together(total: Mapping[str, Array64]) -> Reply | None:
    tallies = tuple(map(_tally, total["tallies"]))
    return EvaluateReply(tallies) if tallies[0].examples else None


def _statistics_apart(reply: StatisticsReply) -> Parts:
    """Products as they are: correlations, in which they travel in open mode, do not add up."""
    gram = reply.sums.gram
    return {"examples": reply.sums.examples, "moment": reply.sums.moment, "triangle": gram[np.triu_indices(len(gram))]}


def _statistics_together(total: Mapping[str, Array64]) -> Reply | None:
    examples, moment = _count(total["examples"]), total["moment"]
    gram = np.zeros((len(moment), len(moment)))
    gram[np.triu_indices(len(moment))] = total["triangle"]
    gram += np.triu(gram, 1).T
    return StatisticsReply(ReadoutSums(gram, moment, examples)) if examples else None


def _compare_apart(reply: CompareReply) -> Parts:
    own = reply.comparison
    return {
        "tallies": [_row(own.adapter), _row(own.zero_shot)],
        "gains": [own.squared_gains, own.disagreements],
        "labels": [own.truth, own.answers],
    }


def _compare_together(total: Mapping[str, Array64]) -> Reply | None:
    adapter, zero_shot = map(_tally, total["tallies"])
    squared_gains, disagreements = total["gains"]
    truth, answers = (tuple(map(_count, row)) for row in total["labels"])
    comparison = Comparison(adapter, zero_shot, float(squared_gains), _count(disagreements), truth, answers)
    return CompareReply(comparison) if adapter.examples else None


def _row(tally: Tally) -> tuple[float, ...]:
    return tally.examples, tally.correct, tally.loss_sum


def _tally(row: Array64) -> Tally:
    return Tally(_count(row[0]), _count(row[1]), float(row[2]))


def _count(number: Any) -> int:
    """Whole numbers are exact in fixed point."""
    return round(float(number))


def _without(parts: Mapping[str, Array64], *names: str) -> dict[str, Array64]:
    return {name: part for name, part in parts.items() if name not in names}


SUMS: Mapping[type[Request], Sum] = {
    VectorsRequest: Sum(12, None, _vectors_apart, _vectors_together),
    UpdateRequest: Sum(24, 48, _update_apart, _update_together),
    GradientRequest: Sum(24, 48, _gradient_apart, _gradient_together),
    EvaluateRequest: Sum(20, 48, _evaluate_apart, _evaluate_together),
    StatisticsRequest: Sum(24, 56, _statistics_apart, _statistics_together),
    CompareRequest: Sum(20, 48, _compare_apart, _compare_together),
}
"""How the answers to each kind of request are summed. A sum holds numbers up to ``2^(bits - 1 - fraction)``: of vectors, which
are most of what crosses, with 40 bits up to 134 million. Products of features are fine, as a linear system is solved with them.
"""

GRADIENT_STEP = 2.0 ** -SUMS[GradientRequest].fraction
"""Of the fixed point that gradients are summed in."""
