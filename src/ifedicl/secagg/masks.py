"""Masks: one pseudorandom integer for each number, expanded from a 32-byte seed that both sides know."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

Integers: TypeAlias = npt.NDArray[np.uint64]

_NUMBER = 8  # bytes
_NONCE = bytes(16)  # each seed makes one mask


def mask(seed: bytes, count: int) -> Integers:
    """``(count,)`` uniform modulo ``2^64``, and so modulo every smaller power of 2: the key stream of ChaCha20 (RFC 8439)."""
    stream = Cipher(ChaCha20(seed, _NONCE), mode=None).encryptor().update(bytes(_NUMBER * count))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)
