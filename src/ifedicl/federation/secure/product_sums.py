"""The products of a refinement in few bits: see :mod:`ifedicl.federation.secure.sketches`.

Their features are centred, so they stay below the number of all examples times a small covariance, and nothing wraps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ifedicl.core.vectors import Array64
from ifedicl.federation import messages
from ifedicl.federation.reply_sums import SUM_RULES, Parts
from ifedicl.federation.secure.changes import OtherFormError
from ifedicl.federation.secure.quantised import Form
from ifedicl.federation.secure.sketches import COUNTS, MOST_WEIGHT_BITS, SMALLEST_WEIGHT
from ifedicl.secagg.fixed_point import FixedPoint

_RULE = SUM_RULES[messages.ProductsReply]
_LARGEST_COVARIANCE = 6
"""``log2`` of the most of a covariance of a feature with a direction. A client shortens what is larger."""


@dataclass(frozen=True)
class ProductSums:
    """The form of the products of one secure sum.

    Attributes:
        weight_bits: training examples of all clients together are at most ``2^weight_bits``.
    """

    weight_bits: int

    @classmethod
    def of(cls, request: messages.Request) -> ProductSums | None:
        """The form of the replies to a request; None: they travel as they are."""
        if not isinstance(request, messages.ProductsRequest) or not 0 < request.weight_bits <= MOST_WEIGHT_BITS:
            return None
        return cls(request.weight_bits)

    def form(self, layout: messages.Layout) -> Form:
        """The fixed points of the numbers of this layout."""
        grids = {"examples": COUNTS, "products": self._grid}
        parts = {name: (math.prod(shape), grids[name]) for name, shape in layout.items()}
        return Form(parts, is_weighted=frozenset({"products"}))

    def is_light(self, examples: int) -> bool:
        """Whether a client with this number of examples has too small a part of all."""
        return examples / 2.0**self.weight_bits < SMALLEST_WEIGHT

    def apart(self, reply: messages.ProductsReply) -> Parts:
        """A client's reply as parts of the sum, with what rounds them up or down by chance."""
        most = 2.0**_LARGEST_COVARIANCE * reply.sums.examples
        products = np.clip(reply.sums.products, -most, most)
        return {**_RULE.apart(reply), "products": products + reply.sums.dither * self._grid.step}

    def together(self, total: Mapping[str, Array64]) -> messages.ProductsReply | None:
        """The reply that holds all clients' examples; None if there are none.

        Raises:
            OtherFormError: there are more examples than was said, so the total may have overflowed.
        """
        reply = _RULE.together(total)
        if reply is not None and reply.sums.examples > 2**self.weight_bits:
            raise OtherFormError((reply.sums.examples - 1).bit_length())
        return reply

    @property
    def _grid(self) -> FixedPoint:
        bits = max(12, math.ceil((16 + self.weight_bits) / 2))
        return FixedPoint(bits, bits - 2 - self.weight_bits - _LARGEST_COVARIANCE)  # a client uses half of the range at most
