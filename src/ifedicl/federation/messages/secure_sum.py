"""The five exchanges of a secure sum: keys, sealed shares, masked numbers, signed lists, shares.

``session`` names a sum and is never used twice. The rules of the sum are in the job's manifest. Positions are those of clients
in the roster, from 0.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.federation.messages.frames import Arrays, Header, Message, RequestMessage, exact_fields

Layout: TypeAlias = Mapping[str, tuple[int, ...]]
"""Names and shapes of a reply's arrays, in order."""
_KEY_SIZE, _SIGNATURE_SIZE = 32, 64


@dataclass(frozen=True)
class BeginRequest(RequestMessage):
    """Compute a reply, keep it, and advertise keys for this sum.

    Attributes:
        request: the bytes of the plain request, the same for all clients.
        cursor: of a vectors request, this client's own; else empty.
    """

    kind: ClassVar[str] = "sum_begin"
    array_names: ClassVar[frozenset[str]] = frozenset({"request"})
    session: str
    request: bytes
    cursor: str = ""

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session, "cursor": self.cursor}, {"request": _row(self.request)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, session=str, cursor=str)
        return cls(fields["session"], _bytes(arrays["request"]), fields["cursor"])


@dataclass(frozen=True)
class BeginReply(Message):
    """The reply is ready; nothing of it has left.

    Attributes:
        mask_key: X25519.
        channel_key: X25519.
        signature: Ed25519, of both keys.
        layout: of the numbers to come.
        dtype: of the client's model.
        cursor: of a vectors reply, sealed; else empty.
    """

    kind: ClassVar[str] = "sum_begin_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"keys"})
    session: str
    mask_key: bytes
    channel_key: bytes
    signature: bytes
    layout: Layout
    dtype: str
    cursor: str = ""

    def to_wire(self) -> tuple[Header, Arrays]:
        layout = {name: list(shape) for name, shape in self.layout.items()}
        header = {"session": self.session, "layout": layout, "dtype": self.dtype, "cursor": self.cursor}
        return header, {"keys": _row(self.mask_key + self.channel_key + self.signature)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, session=str, layout=dict, dtype=str, cursor=str)
        layout = {str(name): tuple(map(operator.index, shape)) for name, shape in fields["layout"].items()}
        return cls(fields["session"], *_keys(_bytes(arrays["keys"])), layout, fields["dtype"], fields["cursor"])


@dataclass(frozen=True)
class DealRequest(RequestMessage):
    """Deal shares of your secrets to the clients of this roster.

    ``keys`` holds the mask key, channel key and signature of each client in ``names``.
    """

    kind: ClassVar[str] = "sum_deal"
    array_names: ClassVar[frozenset[str]] = frozenset({"keys"})
    carries_head: ClassVar[bool] = False
    session: str
    names: tuple[str, ...]
    keys: tuple[tuple[bytes, bytes, bytes], ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session, "names": list(self.names)}, {"keys": _rows([b"".join(keys) for keys in self.keys])}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, session=str, names=list)
        names, keys = tuple(map(str, fields["names"])), tuple(_keys(row) for row in _each(arrays["keys"]))
        if len(set(names)) != len(names) or len(keys) != len(names):
            raise ValueError(f"{len(names)} names, {len(set(names))} different, for {len(keys)} keys")
        return cls(fields["session"], names, keys)


@dataclass(frozen=True)
class DealReply(Message):
    """Sealed shares, for each other client of the roster in order, and a commitment to the client's own secret."""

    kind: ClassVar[str] = "sum_deal_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"sealed", "commitment"})
    session: str
    sealed: tuple[bytes, ...]
    commitment: bytes

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session}, {"sealed": _rows(self.sealed), "commitment": _row(self.commitment)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        session = exact_fields(header, session=str)["session"]
        return cls(session, tuple(_each(arrays["sealed"])), _bytes(arrays["commitment"]))


@dataclass(frozen=True)
class MaskRequest(RequestMessage):
    """Send your masked numbers. ``sealed`` holds what each other client, at ``senders``, dealt to this one."""

    kind: ClassVar[str] = "sum_mask"
    array_names: ClassVar[frozenset[str]] = frozenset({"sealed"})
    carries_head: ClassVar[bool] = False
    session: str
    senders: tuple[int, ...]
    sealed: tuple[bytes, ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session, "senders": list(self.senders)}, {"sealed": _rows(self.sealed)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, session=str, senders=list)
        return cls(fields["session"], _positions(fields["senders"]), tuple(_each(arrays["sealed"])))


@dataclass(frozen=True)
class MaskReply(Message):
    """Masked numbers, ``(count, bits / 8)`` uint8: integers modulo ``2^bits``."""

    kind: ClassVar[str] = "sum_mask_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"masked"})
    session: str
    masked: npt.NDArray[np.uint8]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session}, {"masked": self.masked}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(exact_fields(header, session=str)["session"], arrays["masked"])


@dataclass(frozen=True)
class ObjectReply(Message):
    """The client cannot go on with the clients at these positions of the roster: their keys or sealed shares are wrong."""

    kind: ClassVar[str] = "sum_object_reply"
    session: str
    positions: tuple[int, ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session, "positions": list(self.positions)}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, session=str, positions=list)
        return cls(fields["session"], _positions(fields["positions"]))


@dataclass(frozen=True)
class AgreeRequest(RequestMessage):
    """Sign the lists of clients that dealt and of survivors, whose masked numbers arrived."""

    kind: ClassVar[str] = "sum_agree"
    carries_head: ClassVar[bool] = False
    session: str
    survivors: tuple[int, ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session, "survivors": list(self.survivors)}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, session=str, survivors=list)
        return cls(fields["session"], _positions(fields["survivors"]))


@dataclass(frozen=True)
class AgreeReply(Message):
    """An Ed25519 signature of both lists."""

    kind: ClassVar[str] = "sum_agree_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"signature"})
    session: str
    signature: bytes

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session}, {"signature": _row(self.signature)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(exact_fields(header, session=str)["session"], _bytes(arrays["signature"]))


@dataclass(frozen=True)
class RevealRequest(RequestMessage):
    """Reveal one share of each client that dealt. The signatures of the lists are those of the survivors at ``signers``."""

    kind: ClassVar[str] = "sum_reveal"
    array_names: ClassVar[frozenset[str]] = frozenset({"signatures"})
    carries_head: ClassVar[bool] = False
    session: str
    signers: tuple[int, ...]
    signatures: tuple[bytes, ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session, "signers": list(self.signers)}, {"signatures": _rows(self.signatures)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, session=str, signers=list)
        signers, signatures = _positions(fields["signers"]), tuple(_each(arrays["signatures"]))
        if len(signers) != len(signatures):
            raise ValueError(f"{len(signatures)} signatures of {len(signers)} clients")
        return cls(fields["session"], signers, signatures)


@dataclass(frozen=True)
class RevealReply(Message):
    """One share of each client that dealt, in order: of a survivor's own secret, or of a lost client's mask key."""

    kind: ClassVar[str] = "sum_reveal_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"shares"})
    session: str
    shares: tuple[bytes, ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session}, {"shares": _rows(self.shares)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(exact_fields(header, session=str)["session"], tuple(_each(arrays["shares"])))


SumRequest: TypeAlias = BeginRequest | DealRequest | MaskRequest | AgreeRequest | RevealRequest
SumReply: TypeAlias = BeginReply | DealReply | MaskReply | AgreeReply | RevealReply | ObjectReply


def _row(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


def _rows(items: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """``(count, size)`` uint8, from strings of equal size."""
    return _row(b"".join(items)).reshape(len(items), -1 if items else 0)


def _bytes(array: npt.NDArray[Any]) -> bytes:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise TypeError(f"{array.dtype} {array.shape} is not a row of bytes")
    return array.tobytes()


def _each(array: npt.NDArray[Any]) -> list[bytes]:
    if array.dtype != np.uint8 or array.ndim != 2:
        raise TypeError(f"{array.dtype} {array.shape} are not rows of bytes")
    return [row.tobytes() for row in array]


def _keys(data: bytes) -> tuple[bytes, bytes, bytes]:
    if len(data) != 2 * _KEY_SIZE + _SIGNATURE_SIZE:
        raise ValueError(f"keys of {len(data)} bytes")
    return data[:_KEY_SIZE], data[_KEY_SIZE : 2 * _KEY_SIZE], data[2 * _KEY_SIZE :]


def _positions(values: Sequence[object]) -> tuple[int, ...]:
    positions = tuple(map(operator.index, values))  # type: ignore[arg-type]
    if len(set(positions)) != len(positions) or min(positions, default=0) < 0:
        raise ValueError("positions that occur twice or are negative")
    return positions
