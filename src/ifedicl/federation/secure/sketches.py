"""The sums of a readout in few bits: a client sends about as many bytes as in open mode.

The range of a number grows with the number of all examples, which the request says to a power of 2; so do its steps, and the
mean of a product is known to a hundredth of a unit or two. Numbers are rounded up or down by chance, so that clients' roundings
do not add up. The sketch travels modulo its range: the product of the means, which is most of a large number, is known from the
other sums, and what is left of it fits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ifedicl.core.vectors import Array64
from ifedicl.federation import messages
from ifedicl.federation.reply_sums import SUM_RULES, Parts
from ifedicl.federation.secure.quantised import Form
from ifedicl.federation.secure.short_form import ShortForm, is_stated
from ifedicl.secagg.fixed_point import FixedPoint

_RULE = SUM_RULES[messages.StatisticsReply]
SMALLEST_WEIGHT = 2.0**-12
"""Below it a client takes no part: its moments would be a quarter of a step. See :mod:`ifedicl.federation.secure.changes`."""
COUNTS, _UNITS = FixedPoint(48, 16), FixedPoint(24, 10)
_LARGEST_MOMENT, _LARGEST_SQUARE, _LARGEST_COVARIANCE = 7, 14, 2
"""``log2`` of the most in an example's moment and square (features are at most 100), and of a covariance with a direction."""
_ROUNDED = ("moment", "diagonal", "sketch")
_MOMENT_BITS, _SQUARE_BITS, SKETCH_BITS = 18, 24, 10


@dataclass(frozen=True)
class Sketches(ShortForm):
    """The form of the readout sums of one secure sum.

    Attributes:
        weight_bits: training examples of all clients together are at most ``2^weight_bits``.
    """

    smallest_weight: ClassVar[float] = SMALLEST_WEIGHT
    weight_bits: int

    @classmethod
    def of(cls, request: messages.Request) -> Sketches | None:
        """The form of the replies to a request; None: they travel as they are."""
        if not isinstance(request, messages.StatisticsRequest) or not is_stated(request.weight_bits):
            return None
        return cls(request.weight_bits)

    def form(self, layout: messages.Layout) -> Form:
        """The fixed points of the numbers of this layout."""
        grids = {
            "counts": COUNTS,
            "moment": self._grid(_MOMENT_BITS, _LARGEST_MOMENT),
            "diagonal": self._grid(_SQUARE_BITS, _LARGEST_SQUARE),
            "sketch": self._grid(SKETCH_BITS, _LARGEST_COVARIANCE),
            "along": COUNTS,
            "clients": COUNTS,
            "offset": _UNITS,
            "scale": _UNITS,
        }
        parts = {name: (math.prod(shape), grids[name]) for name, shape in layout.items()}
        return Form(parts, is_weighted=frozenset({"moment", "diagonal"}), wraps=frozenset({"sketch"}))

    def apart(self, reply: messages.StatisticsReply) -> Parts:
        """A client's reply as parts of the sum, with what rounds them up or down by chance."""
        parts = {name: np.asarray(part, dtype=np.float64) for name, part in _RULE.apart(reply).items()}
        form = self.form({name: part.shape for name, part in parts.items()})
        steps = {name: form.parts[name][1].step for name in _ROUNDED}
        draws = np.split(reply.sums.dither((sum(parts[name].size for name in _ROUNDED),)), _ends(parts))
        dithered = {
            name: parts[name] + draw.reshape(parts[name].shape) * steps[name]
            for name, draw in zip(_ROUNDED, draws, strict=True)
        }
        return parts | dithered

    def together(self, total: Mapping[str, Array64]) -> messages.StatisticsReply | None:
        """As :meth:`ShortForm.together`; the part of the sketch that wrapped is known from the other sums."""
        reply = _RULE.together(total)
        if reply is None:
            return None
        sums = reply.sums
        self.require_room(sums.examples)
        known = np.outer(sums.total, sums.along) / sums.examples
        grid = self.form({"sketch": known.shape}).parts["sketch"][1]
        diagonal = np.maximum(sums.diagonal, 0.0)
        return messages.StatisticsReply(replace(sums, diagonal=diagonal, sketch=known + grid.wrapped(sums.sketch - known)))

    def _grid(self, bits: int, largest: int) -> FixedPoint:
        """Numbers up to ``2^(weight_bits + largest)`` in this many bits."""
        return FixedPoint(bits, bits - 1 - self.weight_bits - largest)


def _ends(parts: Mapping[str, Array64]) -> list[int]:
    sizes = [parts[name].size for name in _ROUNDED]
    return [int(end) for end in np.cumsum(sizes)[:-1]]
