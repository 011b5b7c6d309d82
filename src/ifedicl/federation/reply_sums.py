"""Turns replies into sums that can be added, and a total back into one reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.exact_sums import OrderlessSum
from ifedicl.core.framed_sums import Frame, FramedSums
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.refinement import Products
from ifedicl.core.units import Units
from ifedicl.core.vectors import Array64, ContextVectors
from ifedicl.federation import messages
from ifedicl.federation.messages import Reply
from ifedicl.metrics import Comparison, CountedComparison, Tally

R = TypeVar("R", bound=Reply)

Parts: TypeAlias = Mapping[str, Any]
"""Arrays or numbers by name, all of them sums over examples."""


def flat(parts: Parts) -> Array64:
    """``(count,)``: all numbers, part after part."""
    return np.concatenate([np.ravel(np.asarray(part, dtype=np.float64)) for part in parts.values()])


@dataclass(frozen=True)
class SumRule(Generic[R]):
    """How one kind of reply is summed."""

    apart: Callable[[R], Parts]
    """A client's reply as sums over its examples."""
    together: Callable[[Mapping[str, Array64]], R | None]
    """The total of all clients as one reply; None if it counts no example."""
    from_noisy: Callable[[Mapping[str, Array64]], R | None] | None = None
    """The same of a total with noise, whose counts may be impossible; None: as without noise."""

    def of_total(self, total: Mapping[str, Array64], *, is_noisy: bool) -> R | None:
        """The total of all clients as one reply; None if it counts no example."""
        return ((is_noisy and self.from_noisy) or self.together)(total)


class Total(Generic[R]):
    """The sum of replies of one kind, in any order, in the memory of one reply."""

    def __init__(self, kind: type[R]) -> None:
        self._rule: SumRule[R] = SUM_RULES[kind]
        self._sum = OrderlessSum()

    def add(self, reply: R) -> None:
        """Add one client's reply."""
        self._sum.add(self._rule.apart(reply))

    @property
    def reply(self) -> R | None:
        """The reply of one client that holds all clients' examples; None if there is no example."""
        totals = self._sum.totals
        return self._rule.together(totals) if totals else None


def _vectors_apart(reply: messages.VectorsReply) -> Parts:
    return {"counts": reply.vectors.counts, "sums": reply.vectors.sums}


def _vectors_together(total: Mapping[str, Array64]) -> messages.VectorsReply | None:
    vectors = ContextVectors.of_sums(total["sums"], np.rint(total["counts"]).astype(np.int64))
    return (
        messages.VectorsReply(vectors, cursor="", replaces=True, dtype="", wire_dtype="float32") if vectors.examples else None
    )


def _update_apart(reply: messages.UpdateReply) -> Parts:
    """Weighted by examples: the mean over clients is then that of the total (paper Eq. 7 with ``w_k = n_k``)."""
    arrays = {name: array.astype(np.float64) * reply.examples for name, array in reply.coefficients.arrays.items()}
    return {"examples": reply.examples, "loss": reply.loss * reply.examples, **arrays}


def _update_together(total: Mapping[str, Array64]) -> messages.UpdateReply | None:
    examples, arrays = _count(total["examples"]), _without(total, "examples", "loss")
    if not examples:
        return None
    means = {name: (array / examples).astype(np.float32) for name, array in arrays.items()}
    return messages.UpdateReply(Coefficients.of(means), examples, float(total["loss"]) / examples)


def _gradient_apart(reply: messages.GradientReply) -> Parts:
    return {"examples": reply.sums.examples, "loss": reply.sums.loss, **reply.sums.arrays}


def _gradient_together(total: Mapping[str, Array64]) -> messages.GradientReply:
    arrays = {name: array.astype(np.float32) for name, array in _without(total, "examples", "loss").items()}
    return messages.GradientReply(GradientSum(arrays, _count(total["examples"]), float(total["loss"])))


def _evaluate_apart(reply: messages.EvaluateReply) -> Parts:
    return {"tallies": [_row(tally) for tally in reply.tallies]}


def _evaluate_together(total: Mapping[str, Array64]) -> messages.EvaluateReply | None:
    tallies = tuple(map(_tally, total["tallies"]))
    return messages.EvaluateReply(tallies) if tallies[0].examples else None


def _statistics_apart(reply: messages.StatisticsReply) -> Parts:
    """The sums, and the units as numbers of similar size, once for each client."""
    sums, clients = reply.sums, reply.sums.clients
    offset, scale = sums.units.numbers
    return {**sums.arrays, "clients": clients, "offset": offset * clients, "scale": scale * clients}


def _statistics_together(total: Mapping[str, Array64]) -> messages.StatisticsReply | None:
    clients = max(1, _count(total["clients"]))
    units = Units.of_numbers(total["offset"] / clients, total["scale"] / clients)
    counts = np.rint(total["counts"])
    sums = ReadoutSums(counts, total["moment"], total["diagonal"], total["sketch"], total["along"], units, clients)
    return messages.StatisticsReply(sums) if sums.examples else None


def _products_apart(reply: messages.ProductsReply) -> Parts:
    return {"examples": reply.sums.examples, "products": reply.sums.products}


def _products_together(total: Mapping[str, Array64]) -> messages.ProductsReply | None:
    examples = _count(total["examples"])
    return messages.ProductsReply(Products(examples, total["products"])) if examples else None


def _compare_apart(reply: messages.CompareReply) -> Parts:
    comparison = reply.comparison
    return {
        "tallies": [_row(comparison.adapter), _row(comparison.zero_shot)],
        "gains": [comparison.squared_gains, comparison.disagreements],
        "labels": [comparison.truth, comparison.answers],
    }


def _compare_together(total: Mapping[str, Array64]) -> messages.CompareReply | None:
    adapter, zero_shot = map(_tally, total["tallies"])
    squared_gains, disagreements = total["gains"]
    truth, answers = (tuple(map(_count, row)) for row in total["labels"])
    comparison = Comparison(adapter, zero_shot, float(squared_gains), _count(disagreements), truth, answers)
    return messages.CompareReply(comparison) if adapter.examples else None


def _noisy_statistics_apart(reply: messages.NoisyStatisticsReply) -> Parts:
    """The noisy numbers first."""
    sums, frame = reply.sums, reply.sums.frame
    offset, scale = frame.numbers
    public = {"offset": offset, "scale": scale, "directions": frame.directions}
    return {"moment": sums.moment, "products": sums.products, "clients": reply.clients, **public}


def _noisy_statistics_together(total: Mapping[str, Array64]) -> messages.NoisyStatisticsReply:
    clients = max(1, _count(total["clients"]))
    offset, scale, directions = (total[name] / clients for name in ("offset", "scale", "directions"))
    units = Units.of_numbers(offset, scale)
    frame = Frame(units.offset, units.scale, directions)
    return messages.NoisyStatisticsReply(FramedSums(total["moment"], total["products"], frame), clients)


def _evaluate_from_noisy(total: Mapping[str, Array64]) -> messages.EvaluateReply:
    """The number of examples is told with the first tally."""
    examples = total["tallies"][0][0]
    return messages.EvaluateReply(tuple(_possible(examples, row[1]) for row in total["tallies"]))


def _compare_from_noisy(total: Mapping[str, Array64]) -> messages.CompareReply:
    (examples, first, _), (_, second, _) = total["tallies"]
    adapter, zero_shot = _possible(examples, first), _possible(examples, second)
    least = abs(adapter.correct - zero_shot.correct)
    disagreements = min(max(_count(total["gains"][1]), least), adapter.examples)
    return messages.CompareReply(CountedComparison(adapter, zero_shot, disagreements=disagreements))


def _possible(examples: float, correct: float) -> Tally:
    """The nearest counts that are possible: at least one example, and no more right ones than there are."""
    count = max(1, _count(examples))
    return Tally(count, min(max(0, _count(correct)), count))


def _row(tally: Tally) -> tuple[float, ...]:
    return tally.examples, tally.correct, tally.loss_sum


def _tally(row: Array64) -> Tally:
    return Tally(_count(row[0]), _count(row[1]), float(row[2]))


def _count(number: Any) -> int:
    """Whole numbers are exact in fixed point."""
    return round(float(number))


def _without(parts: Mapping[str, Array64], *names: str) -> dict[str, Array64]:
    return {name: part for name, part in parts.items() if name not in names}


SUM_RULES: Mapping[type, SumRule[Any]] = {
    messages.VectorsReply: SumRule(_vectors_apart, _vectors_together),
    messages.UpdateReply: SumRule(_update_apart, _update_together),
    messages.GradientReply: SumRule(_gradient_apart, _gradient_together),
    messages.EvaluateReply: SumRule(_evaluate_apart, _evaluate_together, _evaluate_from_noisy),
    messages.StatisticsReply: SumRule(_statistics_apart, _statistics_together),
    messages.ProductsReply: SumRule(_products_apart, _products_together),
    messages.NoisyStatisticsReply: SumRule(_noisy_statistics_apart, _noisy_statistics_together),
    messages.CompareReply: SumRule(_compare_apart, _compare_together, _compare_from_noisy),
}
"""How each kind of reply is summed."""
