"""Layout and fixed-point format of the replies in a secure sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    """

    parts: Mapping[str, tuple[int, FixedPoint]]
    is_weighted: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return sum(count for count, _ in self.parts.values())

    @property
    def size(self) -> int:
        """Bytes of the numbers as they travel."""
        return sum(count * grid.bits // 8 for count, grid in self.parts.values())

    def integers(self, numbers: Array64) -> npt.NDArray[np.int64]:
        """Each number, ``(count,)``, in steps of its part.

        Raises:
            SecureSumError: a number is not finite, or too large.
        """
        return np.concatenate([grid.integers(part) for _, grid, part in self._split(numbers)])

    def bounded(self, numbers: Array64, clients: int) -> npt.NDArray[np.int64]:
        """As :meth:`integers`, with each number brought into the range that each of ``clients`` may use."""
        return np.concatenate([grid.bounded(part, clients) for _, grid, part in self._split(numbers)])

    def check(self, integers: npt.NDArray[np.int64], clients: int) -> None:
        """Refuse integers that could overflow in a sum over ``clients``.

        Raises:
            SecureSumError: a number is too large.
        """
        for name, grid, part in self._split(integers):
            grid.check(part, 2 if name in self.is_weighted else clients)

    def numbers(self, total: Integers) -> Array64:
        """The numbers of a sum of :meth:`integers`."""
        return np.concatenate([grid.numbers(part) for _, grid, part in self._split(total)])

    def packed(self, integers: Integers) -> bytes:
        """As they travel: part after part, each number little-endian, modulo ``2^bits``."""
        return b"".join(grid.packed(part).tobytes() for _, grid, part in self._split(integers))

    def unpacked(self, data: bytes) -> Integers:
        """The integers of :meth:`packed`, ``size`` bytes."""
        parts, start = list[Integers](), 0
        for count, grid in self.parts.values():
            width = grid.bits // 8
            rows = np.frombuffer(data, np.uint8, count * width, start).reshape(count, width)
            parts.append(grid.unpacked(rows))
            start += rows.size
        return np.concatenate(parts)

    def _split(self, numbers: npt.NDArray[N]) -> Iterator[tuple[str, FixedPoint, npt.NDArray[N]]]:
        start = 0
        for name, (count, grid) in self.parts.items():
            yield name, grid, numbers[start : start + count]
            start += count


@dataclass(frozen=True)
class Sum:
    """How the replies to one kind of request are summed: the rule of open mode, and a fixed-point format."""

    rule: SumRule[Any]
    grid: FixedPoint

    def form(self, layout: messages.Layout) -> Form:
        """The form of the numbers of this layout."""
        return Form({name: (math.prod(shape), self.grid) for name, shape in layout.items()})


def layout_of(parts: Parts) -> messages.Layout:
    """Names and shapes, in order."""
    return {name: np.shape(part) for name, part in parts.items()}


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
