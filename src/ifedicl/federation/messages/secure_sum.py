"""The exchanges of a secure sum: who is ready, deals, masked numbers, confirmed lists, secrets.

``session`` names a sum and is never used twice. The rules of the sum are in the job's manifest. The server gives each
introduction of a client a number; a roster is a set of these numbers, in ascending order. Positions are those in the roster,
from 0. Sets travel as bitmaps, and each message as one array: in a round of a few kilobytes headers would count.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.federation.messages.frames import Arrays, Header, Message, RequestMessage, exact_fields

Layout: TypeAlias = Mapping[str, tuple[int, ...]]
"""Names and shapes of a reply's arrays, in order."""
_SIZES = struct.Struct("<I")
_MOST = 1 << 16
"""Numbers and positions are below it."""


class _SumMessage(Message):
    """The base: fields of bytes, each with its length in front, in one array."""

    array_names: ClassVar[frozenset[str]] = frozenset({"body"})

    def fields(self) -> tuple[bytes, ...]:
        """The message as fields of bytes: all of its attributes, unless a message says otherwise."""
        return tuple(vars(self).values())

    @classmethod
    def of_fields(cls, *fields: bytes) -> Self:
        """From :meth:`fields`.

        Raises:
            TypeError, ValueError: other fields than these.
        """
        return cls(*fields)

    def to_wire(self) -> tuple[Header, Arrays]:
        body = b"".join(_SIZES.pack(len(field)) + field for field in self.fields())
        return {}, {"body": np.frombuffer(body, dtype=np.uint8)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        exact_fields(header)
        body, fields, place = _bytes(arrays["body"]), list[bytes](), 0
        while place < len(body):
            try:
                (size,) = _SIZES.unpack_from(body, place)
            except struct.error as error:
                raise ValueError("a length that is not whole") from error
            start, place = place + _SIZES.size, place + _SIZES.size + size
            fields.append(body[start:place])
        if place > len(body):
            raise ValueError(f"fields of {place} bytes in {len(body)}")
        return cls.of_fields(*fields)


class _SumRequest(_SumMessage, RequestMessage):
    carries_head: ClassVar[bool] = False


@dataclass(frozen=True)
class BeginRequest(_SumRequest):
    """Compute a reply, and keep it.

    Attributes:
        session: 16 bytes.
        request: the bytes of the plain request, the same for all clients.
        cursor: of a vectors request, this client's own; else empty.
        introduce: whether the server lacks this client's channel key.
        roster: numbers of the clients that will probably be ready: deal at once; empty: a deal request follows.
    """

    kind: ClassVar[str] = "sum_begin"
    carries_head: ClassVar[bool] = True
    session: bytes
    request: bytes
    cursor: str = ""
    introduce: bool = False
    roster: tuple[int, ...] = ()

    def fields(self) -> tuple[bytes, ...]:
        return self.session, self.request, self.cursor.encode(), bytes([self.introduce]), _bitmap(self.roster)

    @classmethod
    def of_fields(cls, *fields: bytes) -> Self:
        session, request, cursor, introduce, roster = fields
        if introduce not in {b"\0", b"\1"}:
            raise ValueError("introduce is neither 0 nor 1")
        return cls(session, request, cursor.decode(), introduce == b"\1", _numbers(roster))


@dataclass(frozen=True)
class BeginReply(_SumMessage):
    """The reply is ready; nothing of it has left.

    Attributes:
        session: of the request.
        layout: of the numbers to come.
        dtype: of the client's model.
        cursor: of a vectors reply, sealed; else empty.
        channel: key and signature of this client, if it was asked to introduce itself; else empty.
        deal: for the roster of the request; empty if the client cannot deal for it.
    """

    kind: ClassVar[str] = "sum_begin_reply"
    session: bytes
    layout: Layout
    dtype: str
    cursor: str = ""
    channel: bytes = b""
    deal: bytes = b""

    def fields(self) -> tuple[bytes, ...]:
        layout = json.dumps(self.layout, separators=(",", ":")).encode()
        return self.session, layout, self.dtype.encode(), self.cursor.encode(), self.channel, self.deal

    @classmethod
    def of_fields(cls, *fields: bytes) -> Self:
        session, layout, dtype, cursor, channel, deal = fields
        shapes = {str(name): tuple(map(operator.index, shape)) for name, shape in dict(json.loads(layout)).items()}
        return cls(session, shapes, dtype.decode(), cursor.decode(), channel, deal)


@dataclass(frozen=True)
class DealRequest(_SumRequest):
    """Deal for this roster.

    Attributes:
        session: of the sum.
        roster: numbers of all clients that are ready.
        introductions: number, name, channel key and signature of clients that this one has not been told of.
    """

    kind: ClassVar[str] = "sum_deal"
    session: bytes
    roster: tuple[int, ...]
    introductions: tuple[tuple[int, str, bytes, bytes], ...] = ()

    def fields(self) -> tuple[bytes, ...]:
        told = [part for number, name, *keys in self.introductions for part in (_SIZES.pack(number), name.encode(), *keys)]
        return self.session, _bitmap(self.roster), *told

    @classmethod
    def of_fields(cls, *fields: bytes) -> Self:
        session, roster, *told = fields
        each = zip(*(told[start::4] for start in range(4)), strict=True)
        return cls(session, _numbers(roster), tuple((_number(place), name.decode(), *keys) for place, name, *keys in each))


@dataclass(frozen=True)
class DealReply(_SumMessage):
    """What the client publishes for this roster (``secagg.roster.Deal``)."""

    kind: ClassVar[str] = "sum_deal_reply"
    session: bytes
    deal: bytes


@dataclass(frozen=True)
class MaskRequest(_SumRequest):
    """Send your masked numbers: the clients at these positions dealt."""

    kind: ClassVar[str] = "sum_mask"
    session: bytes
    dealt: tuple[int, ...]

    def fields(self) -> tuple[bytes, ...]:
        return self.session, _bitmap(self.dealt)

    @classmethod
    def of_fields(cls, *fields: bytes) -> Self:
        session, dealt = fields
        return cls(session, _numbers(dealt))


@dataclass(frozen=True)
class MaskReply(_SumMessage):
    """Masked numbers, packed in the form of the sum."""

    kind: ClassVar[str] = "sum_mask_reply"
    session: bytes
    masked: bytes


@dataclass(frozen=True)
class ObjectReply(_SumMessage):
    """The client cannot go on with the clients at these positions of the roster: their keys are wrong."""

    kind: ClassVar[str] = "sum_object_reply"
    session: bytes
    positions: tuple[int, ...]

    def fields(self) -> tuple[bytes, ...]:
        return self.session, _bitmap(self.positions)

    @classmethod
    def of_fields(cls, *fields: bytes) -> Self:
        session, positions = fields
        return cls(session, _numbers(positions))


@dataclass(frozen=True)
class AgreeRequest(_SumRequest):
    """Confirm the lists of clients that dealt and of survivors, whose masked numbers arrived."""

    kind: ClassVar[str] = "sum_agree"
    session: bytes
    survivors: tuple[int, ...]

    def fields(self) -> tuple[bytes, ...]:
        return self.session, _bitmap(self.survivors)

    @classmethod
    def of_fields(cls, *fields: bytes) -> Self:
        session, survivors = fields
        return cls(session, _numbers(survivors))


@dataclass(frozen=True)
class AgreeReply(_SumMessage):
    """A tag of both lists for each other survivor, in order."""

    kind: ClassVar[str] = "sum_agree_reply"
    session: bytes
    tags: bytes


@dataclass(frozen=True)
class RevealRequest(_SumRequest):
    """Reveal what takes off the masks. ``tags`` of the lists are those of the survivors at ``senders``, for this client."""

    kind: ClassVar[str] = "sum_reveal"
    session: bytes
    senders: tuple[int, ...]
    tags: bytes

    def fields(self) -> tuple[bytes, ...]:
        return self.session, _bitmap(self.senders), self.tags

    @classmethod
    def of_fields(cls, *fields: bytes) -> Self:
        session, senders, tags = fields
        return cls(session, _numbers(senders), tags)


@dataclass(frozen=True)
class RevealReply(_SumMessage):
    """The client's own secret, and of each lost client, in order, the secret of the mask that the two share."""

    kind: ClassVar[str] = "sum_reveal_reply"
    session: bytes
    own: bytes
    pairs: bytes


@dataclass(frozen=True)
class SharesRequest(_SumRequest):
    """Reveal your shares of the own secrets of the survivors at these positions, who did not reveal them themselves."""

    kind: ClassVar[str] = "sum_shares"
    session: bytes
    owners: tuple[int, ...]

    def fields(self) -> tuple[bytes, ...]:
        return self.session, _bitmap(self.owners)

    @classmethod
    def of_fields(cls, *fields: bytes) -> Self:
        session, owners = fields
        return cls(session, _numbers(owners))


@dataclass(frozen=True)
class SharesReply(_SumMessage):
    """A share of each owner, in order."""

    kind: ClassVar[str] = "sum_shares_reply"
    session: bytes
    shares: bytes


SumRequest: TypeAlias = BeginRequest | DealRequest | MaskRequest | AgreeRequest | RevealRequest | SharesRequest
SumReply: TypeAlias = BeginReply | DealReply | MaskReply | AgreeReply | RevealReply | SharesReply | ObjectReply


def _bytes(array: npt.NDArray[Any]) -> bytes:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise TypeError(f"{array.dtype} {array.shape} is not a row of bytes")
    return array.tobytes()


def _bitmap(numbers: Collection[int]) -> bytes:
    """Bit ``n`` says whether ``n`` is among the numbers."""
    return sum(1 << number for number in numbers).to_bytes((max(numbers, default=-1) + 8) // 8, "little")


def _numbers(bitmap: bytes) -> tuple[int, ...]:
    """The numbers of :func:`_bitmap`, ascending."""
    if len(bitmap) > _MOST // 8:
        raise ValueError(f"a set of numbers up to {8 * len(bitmap)}")
    return tuple(int(number) for number in np.flatnonzero(np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")))


def _number(data: bytes) -> int:
    number = int.from_bytes(data, "little")
    if len(data) != _SIZES.size or number >= _MOST:
        raise ValueError(f"a number of {len(data)} bytes; allowed: below {_MOST}")
    return number
