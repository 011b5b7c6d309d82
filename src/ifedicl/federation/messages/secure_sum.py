"""The four exchanges of a secure sum: keys, sealed shares, masked numbers, shares.

``session`` names a sum and is never used twice. Positions are those of clients in the roster, from 0.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.federation.messages.frames import Arrays, Header, exact_fields
from ifedicl.settings import PrivacySettings

Layout: TypeAlias = Mapping[str, tuple[int, ...]]
"""Names and shapes of a reply's arrays, in order."""
_KEY_SIZE, _SIGNATURE_SIZE = 32, 64


@dataclass(frozen=True)
class BeginRequest:
    """Compute a reply, keep it, and advertise keys for this sum.

    Attributes:
        rules: of the sum.
        request: the bytes of the plain request, the same for all clients.
        cursor: of a vectors request, this client's own; else empty.
    """

    kind: ClassVar[str] = "sum_begin"
    session: str
    rules: PrivacySettings
    request: bytes
    cursor: str = ""

    def to_wire(self) -> tuple[Header, Arrays]:
        header = {"session": self.session, "rules": self.rules.model_dump(mode="json"), "cursor": self.cursor}
        return header, {"request": _row(self.request)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, session=str, rules=dict, cursor=str)
        rules = PrivacySettings.model_validate(fields["rules"])
        return cls(fields["session"], rules, _bytes(arrays["request"]), fields["cursor"])


@dataclass(frozen=True)
class BeginReply:
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
class DealRequest:
    """Deal shares of your secrets to the clients of this roster.

    ``keys`` holds the mask key, channel key and signature of each client in ``names``.
    """

    kind: ClassVar[str] = "sum_deal"
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
class DealReply:
    """Sealed shares, for each other client of the roster in order, and a commitment to the client's own secret."""

    kind: ClassVar[str] = "sum_deal_reply"
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
class MaskRequest:
    """Send your masked numbers. ``sealed`` holds what each other client, at ``senders``, dealt to this one."""

    kind: ClassVar[str] = "sum_mask"
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
class MaskReply:
    """Masked numbers, ``(count, bits / 8)`` uint8: integers modulo ``2^bits``."""

    kind: ClassVar[str] = "sum_mask_reply"
    session: str
    masked: npt.NDArray[np.uint8]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session}, {"masked": self.masked}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(exact_fields(header, session=str)["session"], arrays["masked"])


@dataclass(frozen=True)
class RevealRequest:
    """Reveal one share of each client that dealt. The survivors are those whose masked numbers arrived."""

    kind: ClassVar[str] = "sum_reveal"
    session: str
    survivors: tuple[int, ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session, "survivors": list(self.survivors)}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, session=str, survivors=list)
        return cls(fields["session"], _positions(fields["survivors"]))


@dataclass(frozen=True)
class RevealReply:
    """One share of each client that dealt, in order: of a survivor's own secret, or of a lost client's mask key."""

    kind: ClassVar[str] = "sum_reveal_reply"
    session: str
    shares: tuple[bytes, ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"session": self.session}, {"shares": _rows(self.shares)}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(exact_fields(header, session=str)["session"], tuple(_each(arrays["shares"])))


SumRequest: TypeAlias = BeginRequest | DealRequest | MaskRequest | RevealRequest
SumReply: TypeAlias = BeginReply | DealReply | MaskReply | RevealReply


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
