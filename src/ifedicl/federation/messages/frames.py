"""Packs any message into a safetensors frame, and checks the fields of frames that arrive."""

from __future__ import annotations

import json
import struct
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ifedicl.core.coefficients import Coefficients
from ifedicl.errors import MessageError

Header: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


def pack(kind: str, header: Header, arrays: Arrays) -> bytes:
    """Header and arrays as one safetensors frame."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save_arrays(contiguous, metadata={"message": json.dumps([kind, header], separators=(",", ":"))})


def unpack(data: bytes) -> tuple[str, Header, Arrays]:
    """Kind, header and arrays of a frame.

    Raises:
        MessageError: the bytes are torn or no frame.
    """
    try:
        arrays: Arrays = load_arrays(data)
        (length,) = struct.unpack_from("<Q", data)
        kind, header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["message"])
        if not isinstance(kind, str) or not isinstance(header, dict):
            raise TypeError(f"kind {type(kind).__name__}, header {type(header).__name__}")
        return kind, header, arrays
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
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
