"""Shamir's secret sharing (1979): any ``threshold`` shares reconstruct a secret, fewer say nothing about it.

The field is the integers modulo the largest prime below ``2^256``, so that a share is 32 bytes. No library does this at this
size: PyCryptodome splits 16 bytes and takes seconds for fifty clients.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import lru_cache
from itertools import zip_longest

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


def corrected(shares: Mapping[int, bytes], threshold: int) -> tuple[bytes, tuple[int, ...]]:
    """The secret, and the positions of wrong shares: up to ``(len(shares) - threshold) // 2`` of them are corrected.

    Shares are a Reed-Solomon code word. This is Gao's decoder (2003): the extended Euclidean algorithm, on the polynomial
    through all shares and the one that is 0 at their positions, stops at the true polynomial times the locator of the errors.

    Raises:
        SecureSumError: more shares are wrong.
    """
    values = {position: int.from_bytes(share, "big") % PRIME for position, share in shares.items()}
    zero, through = [1], [0]
    for position, value in values.items():  # Newton's interpolation
        step = (value - _value(through, position)) * pow(_value(zero, position), -1, PRIME) % PRIME
        through = _sum(through, [step * number % PRIME for number in zero])
        zero = _product(zero, [-position % PRIME, 1])
    before, now, locator_before, locator = zero, through, [0], [1]
    while 2 * (len(now) - 1) >= len(values) + threshold:
        quotient, rest = _divided(before, now)
        before, now = now, rest
        locator_before, locator = locator, _sum(locator_before, [-number % PRIME for number in _product(quotient, locator)])
    polynomial, rest = _divided(now, locator)
    wrong = tuple(position for position, value in values.items() if _value(polynomial, position) != value)
    if rest != [0] or len(polynomial) > threshold or 2 * len(wrong) > len(values) - threshold:
        raise SecureSumError(f"more than {(len(values) - threshold) // 2} of {len(values)} shares are wrong")
    return polynomial[0].to_bytes(SIZE, "big"), wrong


def _sum(one: list[int], other: list[int]) -> list[int]:
    """Of two polynomials, coefficients from the constant up."""
    return _trimmed([(first + second) % PRIME for first, second in zip_longest(one, other, fillvalue=0)])


def _product(one: list[int], other: list[int]) -> list[int]:
    result = [0] * (len(one) + len(other) - 1)
    for place, first in enumerate(one):
        for shift, second in enumerate(other):
            result[place + shift] = (result[place + shift] + first * second) % PRIME
    return _trimmed(result)


def _divided(dividend: list[int], divisor: list[int]) -> tuple[list[int], list[int]]:
    """Quotient and rest."""
    rest, inverse = list(dividend), pow(divisor[-1], -1, PRIME)
    quotient = [0] * max(1, len(dividend) - len(divisor) + 1)
    for shift in range(len(dividend) - len(divisor), -1, -1):
        quotient[shift] = rest[shift + len(divisor) - 1] * inverse % PRIME
        for place, number in enumerate(divisor):
            rest[shift + place] = (rest[shift + place] - quotient[shift] * number) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _trimmed(polynomial: list[int]) -> list[int]:
    """Without leading zeros; ``[0]`` is the zero polynomial."""
    while len(polynomial) > 1 and not polynomial[-1]:
        polynomial = polynomial[:-1]
    return polynomial


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
