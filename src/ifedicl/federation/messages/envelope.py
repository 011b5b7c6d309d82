"""What crosses the wire: the bytes of one message, packed once, and beside them a head of the client's ledger."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from ifedicl.errors import MessageError
from ifedicl.federation.messages.codec import Reply, Request, decode_reply, decode_request, encode
from ifedicl.ledger.entries import Head
from ifedicl.ledger.receipts import Receipt

_MAGIC = b"IFCL"
_VERSION = 2
"""1 had the head within the message."""
_START = struct.Struct("<4sBB")
"""Magic bytes, version, and whether a head follows."""
_HEAD = struct.Struct("<Q32s")
"""Number and SHA-256 of the ledger's entry."""


class Frame:
    """One message as bytes. They are packed once: the same bytes are hashed, counted, recorded and sent."""

    def __init__(self, data: bytes) -> None:
        """Hold the bytes; nothing is read yet."""
        self.data = data

    @classmethod
    def of(cls, message: Request | Reply) -> Self:
        """A message, packed."""
        return cls(encode(message))

    @cached_property
    def request(self) -> Request:
        """The request that the bytes hold. It is read once, however many clients share the frame.

        Raises:
            MessageError: the bytes are torn, not a request, or have fields that do not fit it.
        """
        return decode_request(self.data)

    @cached_property
    def reply(self) -> Reply:
        """The reply that the bytes hold.

        Raises:
            MessageError: the bytes are torn, not a reply, or have fields that do not fit it.
        """
        return decode_reply(self.data)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes, hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The arrays' shapes by name, of a frame that was packed here."""
        (length,) = struct.unpack_from("<Q", self.data)
        header = json.loads(self.data[8 : 8 + length])
        return {name: value["shape"] for name, value in header.items() if name != "__metadata__"}


@dataclass(frozen=True)
class Envelope:
    """A frame, and what travels beside it.

    Attributes:
        head: of a reply: the head of the client's ledger, this reply included. Of a request: the head of that ledger that the
            coordinator knows. None where the client keeps no ledger.
        frame: the message.
    """

    head: Head | None
    frame: Frame

    @classmethod
    def of(cls, message: Request | Reply, head: Head | None = None) -> Self:
        """A message, packed."""
        return cls(head, Frame.of(message))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What :meth:`to_bytes` made. The frame's own content is not read yet.

        Raises:
            MessageError: no envelope, one of another version, or a torn one.
        """
        if len(data) < _START.size:
            raise MessageError(f"{len(data)} bytes that are not a whole envelope")
        magic, version, with_head = _START.unpack_from(data)
        if magic != _MAGIC:
            raise MessageError(
                f"{len(data)} bytes without an envelope: damaged, or from an ifedicl before envelope version {_VERSION}; "
                "both sides need the same ifedicl version"
            )
        if version != _VERSION:
            raise MessageError(f"an envelope of version {version}, not {_VERSION}; both sides need the same ifedicl version")
        if not with_head:
            return cls(None, Frame(data[_START.size :]))
        try:
            entries, digest = _HEAD.unpack_from(data, _START.size)
            head = Head(entries, digest.hex())
        except (struct.error, ValueError) as error:
            raise MessageError(f"{len(data)} bytes that are not a whole envelope: {error}") from error
        return cls(head, Frame(data[_START.size + _HEAD.size :]))

    def to_bytes(self) -> bytes:
        """All that crosses."""
        start = _START.pack(_MAGIC, _VERSION, self.head is not None)
        head = b"" if self.head is None else _HEAD.pack(self.head.entries, bytes.fromhex(self.head.digest))
        return start + head + self.frame.data

    @property
    def size(self) -> int:
        """How many bytes cross. It does not depend on which head there is, only on whether there is one."""
        return _START.size + (_HEAD.size if self.head else 0) + len(self.frame.data)

    @property
    def receipt(self) -> Receipt | None:
        """Of a reply that arrived: what shows later that it was in the client's ledger; None where there is no ledger."""
        return None if self.head is None else Receipt(self.head, self.frame.digest)
