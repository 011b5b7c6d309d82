"""Frames and fields: how any message becomes bytes, and how little is believed of bytes that arrive."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ifedicl.core.coefficients import Coefficients
from ifedicl.errors import MessageError
from ifedicl.ledger.entries import Head

Header: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
Frame: TypeAlias = tuple[str, Header, Arrays, Head | None]
"""Kind, header, arrays and head."""
_ENVELOPE = 1
"""Version of what stands around a message."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """What stands around every message.

    Attributes:
        head: of a reply: how far the client's ledger has come, this reply included. Of a request: how far the coordinator knows
            it to have come. None where the client keeps no ledger.
    """

    head: Head | None = None


def pack(kind: str, header: Header, arrays: Arrays, head: Head | None = None) -> bytes:
    """Header, arrays and envelope as one safetensors frame."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    envelope = [] if head is None else [{"version": _ENVELOPE, "head": [head.entries, head.digest]}]
    return save_arrays(contiguous, metadata={"message": json.dumps([kind, header, *envelope], separators=(",", ":"))})


def digest(kind: str, header: Header, arrays: Arrays) -> str:
    """SHA-256, hex, of a frame without its envelope, as a ledger's line has it."""
    return hashlib.sha256(pack(kind, header, arrays)).hexdigest()


def unpack(data: bytes) -> Frame:
    """What :func:`pack` was given.

    Raises:
        MessageError: not such a frame, or a torn one.
    """
    try:
        arrays: Arrays = load_arrays(data)
        (length,) = struct.unpack_from("<Q", data)
        kind, header, *envelope = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["message"])
        if not isinstance(kind, str) or not isinstance(header, dict) or len(envelope) > 1:
            raise TypeError(f"kind {type(kind).__name__}, header {type(header).__name__}, {len(envelope)} envelopes")
        return kind, header, arrays, _head(envelope[0]) if envelope else None
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MessageError(f"{len(data)} bytes that are not a whole message: {error}") from error


def _head(envelope: Header) -> Head:
    fields = exact_fields(envelope, version=int, head=list)
    if fields["version"] != _ENVELOPE:
        raise ValueError(
            f"an envelope of version {fields['version']}, not {_ENVELOPE}; both sides need the same ifedicl version"
        )
    return Head(*fields["head"])


def exact_fields(header: Header, **types: type) -> dict[str, Any]:
    """The fields of a header, exactly these and each of exactly its type: the other side may send anything.

    Raises:
        TypeError: one is missing, of another type, or too many.
    """
    if set(header) != set(types):
        raise TypeError(f"fields {', '.join(sorted(header))}; allowed: {', '.join(sorted(types))}")
    for name, kind in types.items():
        if type(header[name]) is not kind:
            raise TypeError(f"{name} is {type(header[name]).__name__}, not {kind.__name__}")
    return {name: header[name] for name in types}


def coefficients_of(arrays: Arrays) -> Coefficients:
    """Of exactly the arrays that there may be.

    Raises:
        KeyError, TypeError, ValueError: they are not.
    """
    coefficients = Coefficients.from_wire(arrays)
    if extra := set(arrays) - set(coefficients.arrays):
        raise TypeError(f"arrays {', '.join(sorted(extra))}")
    return coefficients
