"""What crosses the wire: the bytes of one message, packed once, and a head of the client's ledger."""

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
_VERSION = 3
"""Version 1 had the head inside the message. Version 2 sent task and method with each request, not a job's manifest."""
_START = struct.Struct("<4sBB")
"""Magic bytes, version, and whether a head follows."""
_HEAD = struct.Struct("<Q32s")
"""Number and SHA-256 of the ledger's entry."""


class Frame:
    """One message as bytes. They are packed once: the same bytes are hashed, counted, recorded and sent."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @classmethod
    def of(cls, message: Request | Reply) -> Self:
        """A message, packed."""
        return cls(encode(message))

    @cached_property
    def request(self) -> Request:
        """The request in the bytes. It is decoded once, even if many clients share the frame.

        Raises:
            MessageError: the bytes are torn, not a request, or have fields that do not fit it.
        """
        return decode_request(self.data)

    @cached_property
    def reply(self) -> Reply:
        """The reply in the bytes.

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
        """The arrays' shapes by name, in a frame that was packed here."""
        (length,) = struct.unpack_from("<Q", self.data)
        header = json.loads(self.data[8 : 8 + length])
        return {name: value["shape"] for name, value in header.items() if name != "__metadata__"}


@dataclass(frozen=True)
class Envelope:
    """A frame, and a head of the client's ledger.

    Attributes:
        head: of a reply: the ledger's head, with this reply in it. Of a request: the head that the coordinator knows. None: the
            client has no ledger.
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
        """The envelope in bytes from :meth:`to_bytes`. The frame is not decoded yet.

        Raises:
            MessageError: the bytes are torn, no envelope, or one of another version.
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
        """The bytes on the wire."""
        start = _START.pack(_MAGIC, _VERSION, self.head is not None)
        head = b"" if self.head is None else _HEAD.pack(self.head.entries, bytes.fromhex(self.head.digest))
        return start + head + self.frame.data

    @property
    def size(self) -> int:
        """The number of bytes on the wire. It depends on whether there is a head, not on the head itself."""
        return _START.size + (_HEAD.size if self.head else 0) + len(self.frame.data)

    @property
    def receipt(self) -> Receipt | None:
        """Of a reply: proof that the client's ledger has it; None: there is no ledger."""
        return None if self.head is None else Receipt(self.head, self.frame.digest)
