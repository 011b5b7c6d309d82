"""Shamir's secret sharing: any threshold of shares give the secret, fewer say nothing, and wrong ones are corrected."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifedicl.errors import SecureSumError
from ifedicl.secagg import shamir

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=25)


@REPEATABLE
@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.integers(0, 8), st.randoms(use_true_random=False))
def test_any_threshold_shares_give_the_secret_back(secret: bytes, threshold: int, more: int, draw: Random) -> None:
    secret = bytes([secret[0] & 0x7F]) + secret[1:]
    shares = dict(enumerate(shamir.split(secret, threshold, threshold + more), start=1))
    chosen = draw.sample(sorted(shares), threshold)
    assert shamir.join({position: shares[position] for position in chosen}) == secret


@REPEATABLE
@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 5), st.randoms(use_true_random=False))
def test_as_many_wrong_shares_are_corrected_as_half_of_those_to_spare(
    threshold: int, more: int, wrong: int, draw: Random
) -> None:
    count, secret = threshold + more, shamir.drawn()
    shares = dict(enumerate(shamir.split(secret, threshold, count), start=1))
    bent = draw.sample(sorted(shares), min(wrong, count))
    changed_ones = {position: shamir.drawn() for position in bent}
    if 2 * len(bent) <= more:
        assert shamir.corrected({**shares, **changed_ones}, threshold) == (secret, tuple(sorted(bent)))
        return
    try:  # beyond that another polynomial may be nearer, never a wrong count of errors
        _, found = shamir.corrected({**shares, **changed_ones}, threshold)
    except SecureSumError:
        return
    assert 2 * len(found) <= more


def test_fewer_shares_fit_every_secret_alike() -> None:
    # Of two of three shares nothing follows: for any secret there is a third share that gives it.
    shares = shamir.split(bytes(31) + b"\x07", 3, 3)
    two = {position: int.from_bytes(share, "big") for position, share in enumerate(shares[:2], start=1)}
    for wanted in (0, 1, shamir.PRIME - 1):
        # The parabola through (0, wanted) and both shares, at 3: by Lagrange, 1·f(0) - 3·f(1) + 3·f(2).
        third = (wanted - 3 * two[1] + 3 * two[2]) % shamir.PRIME
        whole = {position: value.to_bytes(32, "big") for position, value in {**two, 3: third}.items()}
        assert int.from_bytes(shamir.join(whole), "big") == wanted


def test_a_share_outside_the_field_is_refused() -> None:
    with pytest.raises(SecureSumError):
        shamir.join({1: b"\xff" * 32})
    with pytest.raises(SecureSumError):
        shamir.join({1: b"short"})
