"""Layout and fixed-point format of the replies in a secure sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array64
from ifedicl.federation import messages
from ifedicl.federation.messages import Request
from ifedicl.federation.reply_sums import SUM_RULES, Parts, SumRule
from ifedicl.secagg.fixed_point import FixedPoint
from ifedicl.secagg.masks import Integers

N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True)
class Form:
    """How the numbers of one sum travel.

    Attributes:
        parts: names of the parts, in order, how many numbers each has, and their fixed point.
        is_weighted: the clients' weights in these parts sum to 1 at most. In the other parts each client may use the same share
            of the range.
        wraps: parts that travel modulo their range: any number fits, and the total needs other knowledge.
    """

    parts: Mapping[str, tuple[int, FixedPoint]]
    is_weighted: frozenset[str] = frozenset()
    wraps: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return sum(count for count, _ in self.parts.values())

    @property
    def size(self) -> int:
        """Bytes of the numbers as they travel."""
        return sum(grid.size(count) for count, grid in self.parts.values())

    def integers(self, numbers: Array64) -> npt.NDArray[np.int64]:
        """Each number, ``(count,)``, in steps of its part.

        Raises:
            SecureSumError: a number is not finite, or too large.
        """
        return np.concatenate(
            [
                grid.wrapped_integers(part) if name in self.wraps else grid.integers(part)
                for name, grid, part in self._split(numbers)
            ]
        )

    def bounded(self, numbers: Array64, clients: int) -> npt.NDArray[np.int64]:
        """As :meth:`integers`, with each number brought into the range that each of ``clients`` may use."""
        return np.concatenate([grid.bounded(part, clients) for _, grid, part in self._split(numbers)])

    def check(self, integers: npt.NDArray[np.int64], clients: int) -> None:
        """Refuse integers that could overflow in a sum over ``clients``.

        Raises:
            SecureSumError: a number is too large.
        """
        for name, grid, part in self._split(integers):
            if name not in self.wraps:
                grid.check(part, 2 if name in self.is_weighted else clients)

    def numbers(self, total: Integers) -> Array64:
        """The numbers of a sum of :meth:`integers`."""
        return np.concatenate([grid.numbers(part) for _, grid, part in self._split(total)])

    def packed(self, integers: Integers) -> bytes:
        """As they travel: part after part, each number little-endian, modulo ``2^bits``."""
        return b"".join(grid.packed(part) for _, grid, part in self._split(integers))

    def unpacked(self, data: bytes) -> Integers:
        """The integers of :meth:`packed`, ``size`` bytes."""
        parts, start = list[Integers](), 0
        for count, grid in self.parts.values():
            end = start + grid.size(count)
            parts.append(grid.unpacked(data[start:end], count))
            start = end
        return np.concatenate(parts)

    def _split(self, numbers: npt.NDArray[N]) -> Iterator[tuple[str, FixedPoint, npt.NDArray[N]]]:
        start = 0
        for name, (count, grid) in self.parts.items():
            yield name, grid, numbers[start : start + count]
            start += count


@dataclass(frozen=True)
class Sum:
    """How the replies to one kind of request are summed: the rule of open mode, and fixed-point formats.

    Attributes:
        rule: of open mode.
        grid: of the numbers.
        others: of parts that need another one.
    """

    rule: SumRule[Any]
    grid: FixedPoint
    others: Mapping[str, FixedPoint] = field(default_factory=dict)

    def form(self, layout: messages.Layout) -> Form:
        """The form of the numbers of this layout."""
        return Form({name: (math.prod(shape), self.others.get(name, self.grid)) for name, shape in layout.items()})


def layout_of(parts: Parts) -> messages.Layout:
    """Names and shapes, in order."""
    return {name: np.shape(part) for name, part in parts.items()}


def shaped(numbers: Array64, layout: messages.Layout) -> dict[str, Array64]:
    """The parts of :func:`flat`."""
    ends = np.cumsum([math.prod(shape) for shape in layout.values()])[:-1]
    return {name: part.reshape(layout[name]) for name, part in zip(layout, np.split(numbers, ends), strict=True)}


_FRAME = {"offset": FixedPoint(24, 10), "scale": FixedPoint(24, 10), "directions": FixedPoint(24, 14)}
"""Of what is public and the same at every client: no noise is finer than these steps."""
SUMS: Mapping[type[Request], Sum] = {
    messages.VectorsRequest: Sum(SUM_RULES[messages.VectorsReply], FixedPoint(40, 12)),
    messages.UpdateRequest: Sum(SUM_RULES[messages.UpdateReply], FixedPoint(48, 24)),
    messages.GradientRequest: Sum(SUM_RULES[messages.GradientReply], FixedPoint(48, 24)),
    messages.EvaluateRequest: Sum(SUM_RULES[messages.EvaluateReply], FixedPoint(48, 20)),
    messages.StatisticsRequest: Sum(SUM_RULES[messages.StatisticsReply], FixedPoint(56, 24)),
    messages.ProductsRequest: Sum(SUM_RULES[messages.ProductsReply], FixedPoint(56, 24)),
    messages.NoisyStatisticsRequest: Sum(SUM_RULES[messages.NoisyStatisticsReply], FixedPoint(40, 16), _FRAME),
    messages.CompareRequest: Sum(SUM_RULES[messages.CompareReply], FixedPoint(48, 20)),
}
"""By request. ``FixedPoint(bits, fraction)`` holds sums up to ``2^(bits - 1 - fraction)``: 134 million for vectors, which are
most of the traffic.
"""

STEPS: Mapping[str, float] = {request.kind: summed.grid.step for request, summed in SUMS.items()}
"""Step of the fixed point, by kind of request."""
