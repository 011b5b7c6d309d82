"""The products of a refinement in few bits: see :mod:`ifedicl.federation.secure.sketches`.

Their features are centred, so they stay below the number of all examples times a small covariance, and nothing wraps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ifedicl.core.vectors import Array64
from ifedicl.federation import messages
from ifedicl.federation.reply_sums import SUM_RULES, Parts
from ifedicl.federation.secure.quantised import Form
from ifedicl.federation.secure.short_form import ShortForm, is_stated
from ifedicl.federation.secure.sketches import COUNTS, SMALLEST_WEIGHT
from ifedicl.secagg.fixed_point import FixedPoint

_RULE = SUM_RULES[messages.ProductsReply]
_LARGEST_COVARIANCE = 6
"""``log2`` of the most of a covariance of a feature with a direction. A client shortens what is larger."""


@dataclass(frozen=True)
class ProductSums(ShortForm):
    """The form of the products of one secure sum.

    Attributes:
        weight_bits: training examples of all clients together are at most ``2^weight_bits``.
    """

    smallest_weight: ClassVar[float] = SMALLEST_WEIGHT
    weight_bits: int

    @classmethod
    def of(cls, request: messages.Request) -> ProductSums | None:
        """The form of the replies to a request; None: they travel as they are."""
        if not isinstance(request, messages.ProductsRequest) or not is_stated(request.weight_bits):
            return None
        return cls(request.weight_bits)

    def form(self, layout: messages.Layout) -> Form:
        """The fixed points of the numbers of this layout."""
        grids = {"examples": COUNTS, "products": self._grid}
        parts = {name: (math.prod(shape), grids[name]) for name, shape in layout.items()}
        return Form(parts, is_weighted=frozenset({"products"}))

    def apart(self, reply: messages.ProductsReply) -> Parts:
        """A client's reply as parts of the sum, with what rounds them up or down by chance."""
        most = 2.0**_LARGEST_COVARIANCE * reply.sums.examples
        products = np.clip(reply.sums.products, -most, most)
        return {**_RULE.apart(reply), "products": products + reply.sums.dither * self._grid.step}

    def together(self, total: Mapping[str, Array64]) -> messages.ProductsReply | None:
        """As :meth:`ShortForm.together`."""
        reply = _RULE.together(total)
        if reply is not None:
            self.require_room(reply.sums.examples)
        return reply

    @property
    def _grid(self) -> FixedPoint:
        bits = max(12, math.ceil((16 + self.weight_bits) / 2))
        return FixedPoint(bits, bits - 2 - self.weight_bits - _LARGEST_COVARIANCE)  # a client uses half of the range at most
