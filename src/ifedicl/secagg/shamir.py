"""Shamir's secret sharing (1979): any ``threshold`` shares reconstruct a secret, fewer say nothing about it.

The field is the integers modulo the largest prime below ``2^256``, so that a share is 32 bytes. No library does this at this
size: PyCryptodome splits 16 bytes and takes seconds for fifty clients.
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
    """A random secret: an element of the field."""
    return secrets.randbelow(PRIME).to_bytes(SIZE, "big")


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares for positions 1 to ``count``: a random polynomial of degree ``threshold - 1`` with the secret at 0.

    Raises:
        ValueError: the threshold is above ``count`` or below 1, or the secret is outside the field.
    """
    constant = int.from_bytes(secret, "big")
    if not 1 <= threshold <= count or len(secret) != SIZE or constant >= PRIME:
        raise ValueError(f"cannot share a secret of {len(secret)} bytes, threshold {threshold} of {count} shares")
    polynomial = [constant, *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(polynomial, position).to_bytes(SIZE, "big") for position in range(1, count + 1)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret that ``threshold`` or more shares, by position, reconstruct. With fewer, or a wrong one, it is another.

    Raises:
        SecureSumError: a share is not an element of the field.
    """
    values = {position: int.from_bytes(share, "big") for position, share in shares.items()}
    if any(len(share) != SIZE for share in shares.values()) or any(value >= PRIME for value in values.values()):
        raise SecureSumError("a share is not an element of the field; its sender runs another version, or changed it")
    weights = _weights(tuple(values))
    total = sum(weight * value for weight, value in zip(weights, values.values(), strict=True))
    return (total % PRIME).to_bytes(SIZE, "big")


def _value(polynomial: list[int], position: int) -> int:
    """Value of the polynomial, by Horner's rule."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * position + coefficient) % PRIME
    return value


@lru_cache(maxsize=8)
def _weights(positions: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights at 0. They are the same for all secrets whose shares the same clients hold."""
    weights = []
    for own in positions:
        numerator = denominator = 1
        for other in positions:
            if other != own:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - own) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)
