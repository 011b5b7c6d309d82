"""Shamir's secret sharing (1979), of shares that both sides derive: ``threshold`` of them give the others, fewer say nothing.

A dealer and each holder derive the holder's share from the key of the pair, so no share travels. Shares that are drawn so lie
on no polynomial of degree ``threshold - 1``; the dealer publishes by how much each misses the polynomial through the first
``threshold`` of them. The field is the integers modulo the largest prime below ``2^128``. No library does this.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest
from operator import mul

from ifedicl.errors import SecureSumError

SIZE = 16
"""Bytes of an element of the field."""
PRIME = 2**128 - 159


def drawn() -> int:
    """A random element."""
    return secrets.randbelow(PRIME)


def element(data: bytes) -> int:
    """An element from 16 bytes; of uniform bytes it is uniform to within ``2^-120``."""
    return int.from_bytes(data, "big") % PRIME


def to_bytes(value: int) -> bytes:
    """16 bytes, as elements travel."""
    return value.to_bytes(SIZE, "big")


def from_bytes(data: bytes) -> int:
    """The element of :func:`to_bytes`.

    Raises:
        SecureSumError: the bytes are no element.
    """
    value = int.from_bytes(data, "big")
    if len(data) != SIZE or value >= PRIME:
        raise SecureSumError("a share is not an element of the field; its sender runs another version, or changed it")
    return value


def corrections(values: Sequence[int], threshold: int) -> list[int]:
    """By how much the values at positions ``threshold + 1`` and up miss the polynomial through those at 1 to ``threshold``."""
    through = interpolated(dict(enumerate(values[:threshold], start=1)), range(threshold + 1, len(values) + 1))
    return [(value - on) % PRIME for value, on in zip(values[threshold:], through, strict=True)]


def interpolated(points: Mapping[int, int], positions: Sequence[int]) -> list[int]:
    """The values at ``positions`` of the polynomial of lowest degree through the points."""
    values, others = tuple(points.values()), tuple(position for position in positions if position not in points)
    rows = dict(zip(others, _weights(tuple(points), others), strict=True))
    return [points[position] if position in points else sum(map(mul, rows[position], values)) % PRIME for position in positions]


def wrong_positions(points: Mapping[int, int], threshold: int) -> tuple[int, ...]:
    """Positions whose values are wrong: up to ``(len(points) - threshold) // 2`` of them can be found.

    The points are a Reed-Solomon code word. This is Gao's decoder (2003): the extended Euclidean algorithm, on the polynomial
    through all points and the one that is 0 at their positions, stops at the true polynomial times the locator of the errors.

    Raises:
        SecureSumError: more are wrong.
    """
    zero, through = [1], [0]
    for position, value in points.items():  # Newton's interpolation
        step = (value - _value(through, position)) * pow(_value(zero, position), -1, PRIME) % PRIME
        through = _sum(through, [step * number % PRIME for number in zero])
        zero = _product(zero, [-position % PRIME, 1])
    before, now, locator_before, locator = zero, through, [0], [1]
    while 2 * (len(now) - 1) >= len(points) + threshold:
        quotient, rest = _divided(before, now)
        before, now = now, rest
        locator_before, locator = locator, _sum(locator_before, [-number % PRIME for number in _product(quotient, locator)])
    polynomial, rest = _divided(now, locator)
    wrong = tuple(position for position, value in points.items() if _value(polynomial, position) != value)
    if rest != [0] or len(polynomial) > threshold or 2 * len(wrong) > len(points) - threshold:
        raise SecureSumError(f"more than {(len(points) - threshold) // 2} of {len(points)} shares are wrong")
    return wrong


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
def _weights(nodes: tuple[int, ...], positions: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Lagrange weights of the nodes at each position. They are the same for all secrets that the same clients open."""
    slopes = []  # inverse of the product of differences between a node and the others
    for own in nodes:
        product = 1
        for other in nodes:
            if other != own:
                product = product * (own - other) % PRIME
        slopes.append(pow(product, -1, PRIME))
    rows = []
    for position in positions:
        whole = 1
        for node in nodes:
            whole = whole * (position - node) % PRIME
        rows.append(tuple(whole * slope * _inverse(position - node) % PRIME for node, slope in zip(nodes, slopes, strict=True)))
    return tuple(rows)


@lru_cache(maxsize=4096)
def _inverse(difference: int) -> int:
    return pow(difference, -1, PRIME)
