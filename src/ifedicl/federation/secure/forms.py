"""Which form the replies to a request take in a secure sum."""

from __future__ import annotations

from ifedicl.federation.messages import Request
from ifedicl.federation.secure.changes import Changes
from ifedicl.federation.secure.product_sums import ProductSums
from ifedicl.federation.secure.short_form import ShortForm
from ifedicl.federation.secure.sketches import Sketches
from ifedicl.settings import CalibrationSettings


def short_form(calibration: CalibrationSettings | None, request: Request) -> ShortForm | None:
    """The form of the replies to a request; None: they travel as they are."""
    return Changes.of(calibration, request) or Sketches.of(request) or ProductSums.of(request)
