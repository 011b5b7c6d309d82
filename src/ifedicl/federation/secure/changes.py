"""Updates as changes of the coefficients, in few bits: a round's bytes are near those of open mode, where Γ has 16 bits.

A change has a bound that all sides know: AdamW moves a number by a few learning rates. And clients weight their changes by
their examples over ``2^weight_bits``. The request holds these bits; it is at least the number of all examples. So a sum stays
below the bound, however many clients there are, and its steps can be as fine as the bits allow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.schedules import SCHEDULES
from ifedicl.core.vectors import Array64
from ifedicl.errors import SecureSumError
from ifedicl.federation import messages
from ifedicl.federation.reply_sums import Parts
from ifedicl.federation.secure.quantised import Form
from ifedicl.federation.secure.short_form import ShortForm, is_stated
from ifedicl.secagg.fixed_point import FixedPoint
from ifedicl.settings import CalibrationSettings

_BETAS = 0.9, 0.999
"""AdamW's, as torch has them by default."""
_COUNTS = FixedPoint(40, 16)
"""Of numbers of examples and losses."""
_SMALLEST_WEIGHT = 2.0**-8
"""Below it a client takes no part. With 16 bits a change at the bound has 32 steps or more, so no client's rounds to nothing: a
server that states too many examples could else get the change of the one client that has by far the most."""
_STEPS: Mapping[str, int] = {"core": 16}
"""``-log2`` of the largest step that is fine enough, and the fewest bits: 24 unless it is here. Γ has 11 significant bits."""
_FINE = 24
_MOST_BITS = 40


@dataclass(frozen=True)
class Changes(ShortForm):
    """The form of the updates of one sum.

    Attributes:
        before: the coefficients that the clients start from, as they travel.
        weight_bits: examples of all clients together are at most ``2^weight_bits``.
        reach: no number changes by more.
    """

    smallest_weight: ClassVar[float] = _SMALLEST_WEIGHT
    before: Coefficients
    weight_bits: int
    reach: float

    @classmethod
    def of(cls, calibration: CalibrationSettings | None, request: messages.Request) -> Changes | None:
        """The form of the replies to a request; None: they travel as they are."""
        if calibration is None or not isinstance(request, messages.UpdateRequest) or not is_stated(request.weight_bits):
            return None
        changes = cls(request.coefficients.rounded, request.weight_bits, reach_of(calibration, request))
        return changes if all(changes._bits(name) <= _MOST_BITS for name in changes.before.arrays) else None

    def form(self, _layout: messages.Layout) -> Form:
        """The fixed points of the numbers."""
        parts = {"examples": (1, _COUNTS), "loss": (1, _COUNTS)}
        for name, array in self.before.arrays.items():
            bits = self._bits(name)
            parts[name] = array.size, FixedPoint(bits, bits - 2 - self._exponent)
        return Form(parts, frozenset(self.before.arrays))

    def apart(self, reply: messages.UpdateReply) -> Parts:
        """A client's reply as parts of the sum.

        Raises:
            SecureSumError: a number changed by more than :attr:`reach`, or there are more examples than in all.
        """
        weight = reply.examples / 2.0**self.weight_bits
        changes = {
            name: array.astype(np.float64) - self.before.arrays[name].astype(np.float64)
            for name, array in reply.coefficients.arrays.items()
        }
        largest = max(float(np.abs(change).max()) for change in changes.values())
        if not largest <= self.reach or weight > 1:  # NaN is refused too
            raise SecureSumError(
                f"a number changed by {largest:g}, with a weight of {weight:g}; allowed: {self.reach:g}, and 1. The "
                "coordinator counts fewer examples than this client has, or runs another version"
            )
        weighted = {name: change * weight for name, change in changes.items()}
        return {"examples": reply.examples, "loss": reply.loss * reply.examples, **weighted}

    def together(self, total: Mapping[str, Array64]) -> messages.UpdateReply | None:
        """The reply that holds all clients' examples; None if there are none.

        Raises:
            OtherFormError: there are more than the weights allow, so the total may have overflowed.
        """
        examples = round(float(total["examples"]))
        if not examples:
            return None
        self.require_room(examples)
        scale = 2.0**self.weight_bits / examples
        arrays = {
            name: (array.astype(np.float64) + total[name] * scale).astype(np.float32)
            for name, array in self.before.arrays.items()
        }
        return messages.UpdateReply(Coefficients.of(arrays), examples, float(total["loss"]) / examples)

    @property
    def _exponent(self) -> int:
        """``reach`` is at most 2 to the power of it."""
        return math.ceil(math.log2(self.reach))

    def _bits(self, name: str) -> int:
        """Bits of a number, a multiple of 8: the range is twice ``reach``, so that rounding never leaves it."""
        fine = _STEPS.get(name, _FINE)
        return max(fine, 8 * math.ceil((self._exponent + 2 + fine) / 8))


def reach_of(settings: CalibrationSettings, request: messages.UpdateRequest) -> float:
    """The most that an honest client changes a number by in one update.

    The first term is AdamW's steps at this round's learning rates, the second its weight decay and the rounding of float32.
    """
    begun, count = (request.round - request.phase_start) * settings.local_steps, request.phase_rounds * settings.local_steps
    rates = [
        settings.learning_rate * SCHEDULES[settings.schedule]((begun + step) / count) for step in range(settings.local_steps)
    ]
    moved = sum(rate * _largest_step(step) for step, rate in enumerate(rates, start=1))
    largest = 1 + max(float(np.abs(array).max()) for array in request.coefficients.arrays.values()) + moved
    return moved + largest * (sum(rates) * settings.weight_decay + 2.0**-18)


def _largest_step(count: int) -> float:
    """The most that Adam's step ``count`` moves a number by, in learning rates.

    Of ``m = Σ a_s g_s`` and ``v = Σ b_s g_s²`` it is at most the root of ``Σ a_s² / b_s`` (Cauchy and Schwarz); with equal
    gradients it is 1.
    """
    first, second = _BETAS
    ratio = first**2 / second
    sums = (1 - ratio**count) / (1 - ratio)
    return (1 - first) / (1 - first**count) * math.sqrt((1 - second**count) / (1 - second) * sums)
