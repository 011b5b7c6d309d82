"""Packs any message into a safetensors frame, and checks the fields of frames that arrive."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import of_halves
from ifedicl.core.vectors import Array32
from ifedicl.data import Role
from ifedicl.errors import MessageError

Header: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

_LARGEST_HEADER = 1_000_000
"""Bytes of a message's header; parsed JSON takes many times its size in memory."""


class Message:
    """The base of all messages: the name of its kind, and the names that its arrays may have."""

    kind: ClassVar[str]
    array_names: ClassVar[frozenset[str]] = frozenset()


class RequestMessage(Message):
    """The base of all requests."""

    carries_head: ClassVar[bool] = True
    """Whether the head of the client's ledger comes with it. Without one the same bytes go to all clients."""
    role: ClassVar[Role | None] = None
    """Of the examples that the reply is about; None: of no examples. Two replies of one kind can be compared."""


def pack(kind: str, header: Header, arrays: Arrays) -> bytes:
    """Header and arrays as one safetensors frame."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save_arrays(contiguous, metadata={"message": json.dumps([kind, header], separators=(",", ":"))})


def unpack(data: bytes, arrays_of: Callable[[str], Collection[str]] | None = None) -> tuple[str, Header, Arrays]:
    """Kind, header and arrays of a frame.

    Args:
        data: the frame.
        arrays_of: of a message: from a kind, the names that its arrays may have; a frame with another one, or with a huge
            header, is refused before it is decoded. None: a file of our own, with any names.

    Raises:
        MessageError: the bytes are torn, no frame, or have an array that the kind does not have.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        if arrays_of is not None and length > _LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes; allowed: up to {_LARGEST_HEADER}")
        described = json.loads(data[8 : 8 + length])
        kind, header = json.loads(described["__metadata__"]["message"])
        if not isinstance(kind, str) or not isinstance(header, dict):
            raise TypeError(f"kind {type(kind).__name__}, header {type(header).__name__}")
        if arrays_of is not None and (extra := described.keys() - {"__metadata__", *arrays_of(kind)}):
            raise ValueError(f"{len(extra)} arrays that a {kind} message does not have")
        return kind, header, load_arrays(data)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MessageError(f"{len(data)} bytes that are not a whole message: {error}") from error


def exact_fields(header: Header, **types: type) -> dict[str, Any]:
    """The fields of a header: exactly these names and types, because the other side may send anything.

    Raises:
        TypeError: a field is missing, unknown, or of another type.
    """
    if set(header) != set(types):
        raise TypeError(f"fields {', '.join(sorted(header))}; allowed: {', '.join(sorted(types))}")
    for name, kind in types.items():
        if type(header[name]) is not kind:
            raise TypeError(f"{name} is {type(header[name]).__name__}, not {kind.__name__}")
    return {name: header[name] for name in types}


def coefficients_of(arrays: Arrays) -> Coefficients:
    """Coefficients from arrays.

    Raises:
        KeyError, TypeError, ValueError: an array is missing, unknown, or of another shape or dtype.
    """
    coefficients = Coefficients.from_wire(arrays)
    if extra := set(arrays) - set(coefficients.arrays):
        raise TypeError(f"arrays {', '.join(sorted(extra))}")
    return coefficients


def weights_of(arrays: Arrays) -> Array32:
    """``(K, C, F + 1)`` weights of readouts from their :func:`~ifedicl.core.readout.halves`; none from no arrays.

    Raises:
        KeyError, ValueError: an array is missing, or of another shape or dtype.
    """
    if not arrays:
        return np.zeros((0, 0, 0), np.float32)
    numbers, powers = arrays["readouts"], arrays["powers"]
    fits = numbers.ndim == 3 and powers.shape == (len(numbers), numbers.shape[2])
    if not fits or (numbers.dtype, powers.dtype) != (np.dtype(np.float16), np.dtype(np.int16)):
        raise ValueError(
            f"readouts, powers: received {numbers.dtype} {numbers.shape} and {powers.dtype} {powers.shape}; "
            "allowed: float16 (K, C, F + 1) and int16 (K, F + 1)"
        )
    return of_halves(numbers.astype(np.float16), powers.astype(np.int16))
