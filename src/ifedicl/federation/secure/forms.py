"""Which form the replies to a request take in a secure sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ifedicl.core.vectors import Array64
from ifedicl.federation import messages
from ifedicl.federation.messages import Reply, Request
from ifedicl.federation.reply_sums import Parts
from ifedicl.federation.secure.changes import Changes
from ifedicl.federation.secure.product_sums import ProductSums
from ifedicl.federation.secure.quantised import Form
from ifedicl.federation.secure.sketches import Sketches
from ifedicl.settings import CalibrationSettings


class ShortForm(Protocol):
    """Replies in fewer bits than numbers as they are, if the number of all examples is known."""

    def form(self, layout: messages.Layout) -> Form:
        """The fixed points of the numbers of this layout."""

    def is_light(self, examples: int) -> bool:
        """Whether a client with this number of examples has too small a part of all."""

    def apart(self, reply: Any) -> Parts:
        """A client's reply as parts of the sum."""

    def together(self, total: Mapping[str, Array64]) -> Reply | None:
        """The reply that holds all clients' examples; None if there are none."""


def short_form(calibration: CalibrationSettings | None, request: Request) -> ShortForm | None:
    """The form of the replies to a request; None: they travel as they are."""
    return Changes.of(calibration, request) or Sketches.of(request) or ProductSums.of(request)
