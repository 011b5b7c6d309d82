"""What forms in few bits share: the request says how many examples there are at most, and so the range of each number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from ifedicl.core.vectors import Array64
from ifedicl.federation import messages
from ifedicl.federation.messages import Reply
from ifedicl.federation.reply_sums import Parts
from ifedicl.federation.secure.quantised import Form

_MOST_WEIGHT_BITS = 22  # the range of the number of examples


class OtherFormError(Exception):
    """The replies of a sum need another form.

    Attributes:
        weight_bits: that the clients' examples need; 0: send them as they are.
    """

    def __init__(self, weight_bits: int) -> None:
        super().__init__(weight_bits)
        self.weight_bits = weight_bits


class ShortForm(ABC):
    """Replies in fewer bits than numbers as they are, if the number of all examples is known.

    Attributes:
        smallest_weight: below it a client takes no part.
        weight_bits: examples of all clients together are at most ``2^weight_bits``.
    """

    smallest_weight: ClassVar[float]
    weight_bits: int

    @abstractmethod
    def form(self, layout: messages.Layout, /) -> Form:
        """The fixed points of the numbers of this layout."""

    @abstractmethod
    def apart(self, reply: Any) -> Parts:
        """A client's reply as parts of the sum."""

    @abstractmethod
    def together(self, total: Mapping[str, Array64]) -> Reply | None:
        """The reply that holds all clients' examples; None if there are none.

        Raises:
            OtherFormError: there are more examples than was said, so the total may have overflowed.
        """

    def is_light(self, examples: int) -> bool:
        """Whether a client with this number of examples has too small a part of all."""
        return examples / 2.0**self.weight_bits < self.smallest_weight

    def require_room(self, examples: int) -> None:
        """Check that there are no more examples than was said.

        Raises:
            OtherFormError: there are.
        """
        if examples > 2**self.weight_bits:
            raise OtherFormError((examples - 1).bit_length())


def is_stated(weight_bits: int) -> bool:
    """Whether a request says how many examples there are, within what these forms are made for."""
    return 0 < weight_bits <= _MOST_WEIGHT_BITS
