"""Shamir's secret sharing (1979): any ``threshold`` shares give a secret back, and fewer say nothing about it.

Over the integers modulo the largest prime below ``2^256``, so that shares look like any 32 bytes. No library does it at this
size: PyCryptodome's splits 16 bytes, and takes seconds for a federation of fifty.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import lru_cache

from ifedicl.errors import SecureSumError

SIZE = 32
"""Bytes of a secret and of a share."""
PRIME = 2**256 - 189


def drawn() -> bytes:
    """A random secret: one of the field's numbers."""
    return secrets.randbelow(PRIME).to_bytes(SIZE, "big")


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares for positions 1 to ``count``: values of a random polynomial of degree ``threshold - 1`` that is the secret at 0.

    Raises:
        ValueError: a threshold that ``count`` shares cannot meet, or a secret outside the field.
    """
    constant = int.from_bytes(secret, "big")
    if not 1 <= threshold <= count or len(secret) != SIZE or constant >= PRIME:
        raise ValueError(f"a secret of {len(secret)} bytes, {threshold} of {count} shares")
    polynomial = [constant, *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(polynomial, position).to_bytes(SIZE, "big") for position in range(1, count + 1)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret that ``threshold`` or more shares, by position, came from; of fewer, or of a bent one, something else.

    Raises:
        SecureSumError: a share is not one of the field's numbers.
    """
    values = {position: int.from_bytes(share, "big") for position, share in shares.items()}
    if any(len(share) != SIZE for share in shares.values()) or any(value >= PRIME for value in values.values()):
        raise SecureSumError("a share that is no number of the field; its sender runs another version, or bent it")
    weights = _weights(tuple(values))
    total = sum(weight * value for weight, value in zip(weights, values.values(), strict=True))
    return (total % PRIME).to_bytes(SIZE, "big")


def _value(polynomial: list[int], position: int) -> int:
    """Horner's rule."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * position + coefficient) % PRIME
    return value


@lru_cache(maxsize=8)
def _weights(positions: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0; the same for all secrets whose shares lie with the same clients."""
    weights = []
    for own in positions:
        numerator = denominator = 1
        for other in positions:
            if other != own:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - own) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)
