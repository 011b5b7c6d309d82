"""Replies as numbers that add up, and totals as replies again, so that many clients' replies take the place of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.exact_sums import OrderlessSum
from ifedicl.core.readout import ReadoutSums
from ifedicl.core.vectors import Array64, ContextVectors
from ifedicl.federation.messages import (
    CompareReply,
    EvaluateReply,
    GradientReply,
    Reply,
    StatisticsReply,
    UpdateReply,
    VectorsReply,
)
from ifedicl.metrics import Comparison, Tally

R = TypeVar("R", VectorsReply, UpdateReply, GradientReply, EvaluateReply, StatisticsReply, CompareReply)

Parts: TypeAlias = Mapping[str, Any]
"""Arrays or numbers by name, all of them sums over examples."""


@dataclass(frozen=True)
class SumRule(Generic[R]):
    """How one kind of reply is summed.

    Attributes:
        apart: a client's reply as sums over its examples.
        together: the total of all clients as one reply; None where it is of no example.
    """

    apart: Callable[[R], Parts]
    together: Callable[[Mapping[str, Array64]], R | None]


class Total(Generic[R]):
    """Replies of one kind, added up as they come, in any order and in the memory of one."""

    def __init__(self, kind: type[R]) -> None:
        """Begin with none."""
        self._sum_rule: SumRule[R] = sum_rule(kind)
        self._sum = OrderlessSum()

    def add(self, reply: R) -> None:
        """Add one client's."""
        self._sum.add(self._sum_rule.apart(reply))

    @property
    def reply(self) -> R | None:
        """What one client with everybody's examples would have replied; None where there is no example."""
        totals = self._sum.totals
        return self._sum_rule.together(totals) if totals else None


def _vectors_apart(reply: VectorsReply) -> Parts:
    return {"counts": reply.vectors.counts, "sums": reply.vectors.sums}


def _vectors_together(total: Mapping[str, Array64]) -> VectorsReply | None:
    vectors = ContextVectors.of_sums(total["sums"], np.rint(total["counts"]).astype(np.int64))
    return VectorsReply(vectors, cursor="", replaces=True, dtype="", wire_dtype="float32") if vectors.examples else None


def _update_apart(reply: UpdateReply) -> Parts:
    """Weighted by examples: the mean over clients is then that of the total (paper Eq. 7 with ``w_k = n_k``)."""
    arrays = {name: array.astype(np.float64) * reply.examples for name, array in reply.coefficients.arrays.items()}
    return {"examples": reply.examples, "loss": reply.loss * reply.examples, **arrays}


def _update_together(total: Mapping[str, Array64]) -> UpdateReply | None:
    examples, arrays = _count(total["examples"]), _without(total, "examples", "loss")
    if not examples:
        return None
    means = {name: (array / examples).astype(np.float32) for name, array in arrays.items()}
    return UpdateReply(Coefficients.of(means), examples, float(total["loss"]) / examples)


def _gradient_apart(reply: GradientReply) -> Parts:
    return {"examples": reply.sums.examples, "loss": reply.sums.loss, **reply.sums.arrays}


def _gradient_together(total: Mapping[str, Array64]) -> GradientReply:
    arrays = {name: array.astype(np.float32) for name, array in _without(total, "examples", "loss").items()}
    return GradientReply(GradientSum(arrays, _count(total["examples"]), float(total["loss"])))


def _evaluate_apart(reply: EvaluateReply) -> Parts:
    return {"tallies": [_row(tally) for tally in reply.tallies]}


def _evaluate_together(total: Mapping[str, Array64]) -> EvaluateReply | None:
    tallies = tuple(map(_tally, total["tallies"]))
    return EvaluateReply(tallies) if tallies[0].examples else None


def _statistics_apart(reply: StatisticsReply) -> Parts:
    """Products as they are: correlations, in which they travel in open mode, do not add up."""
    gram = reply.sums.gram
    return {"examples": reply.sums.examples, "moment": reply.sums.moment, "triangle": gram[np.triu_indices(len(gram))]}


def _statistics_together(total: Mapping[str, Array64]) -> StatisticsReply | None:
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


def _compare_together(total: Mapping[str, Array64]) -> CompareReply | None:
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


_SUM_RULES: Mapping[type[Reply], SumRule[Any]] = {
    VectorsReply: SumRule(_vectors_apart, _vectors_together),
    UpdateReply: SumRule(_update_apart, _update_together),
    GradientReply: SumRule(_gradient_apart, _gradient_together),
    EvaluateReply: SumRule(_evaluate_apart, _evaluate_together),
    StatisticsReply: SumRule(_statistics_apart, _statistics_together),
    CompareReply: SumRule(_compare_apart, _compare_together),
}


def sum_rule(kind: type[R]) -> SumRule[R]:
    """Of one kind of reply."""
    found: SumRule[R] = _SUM_RULES[kind]
    return found
