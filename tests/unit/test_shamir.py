"""Shamir's secret sharing of derived shares: any threshold of them give the others, fewer say nothing, wrong ones are found."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifedicl.errors import SecureSumError
from ifedicl.secagg import shamir

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=25)


def dealt(threshold: int, count: int) -> tuple[list[int], dict[int, int]]:
    """Values that are drawn for positions 1 to ``count``, and the points of their polynomial after correction."""
    values = [shamir.drawn() for _ in range(count)]
    published = shamir.corrections(values, threshold)
    assert len(published) == count - threshold
    corrected = [
        *values[:threshold],
        *((value - by) % shamir.PRIME for value, by in zip(values[threshold:], published, strict=True)),
    ]
    return values, dict(enumerate(corrected, start=1))


@REPEATABLE
@given(st.integers(1, 12), st.integers(0, 8), st.randoms(use_true_random=False))
def test_any_threshold_of_values_give_all_others_back(threshold: int, more: int, draw: Random) -> None:
    values, points = dealt(threshold, threshold + more)
    published = shamir.corrections(values, threshold)
    chosen = {position: points[position] for position in draw.sample(sorted(points), threshold)}
    found = shamir.interpolated(chosen, range(1, threshold + more + 1))
    added = [0] * threshold + published
    assert [(on + by) % shamir.PRIME for on, by in zip(found, added, strict=True)] == values
    assert shamir.interpolated(chosen, (0,)) == shamir.interpolated(dict(list(points.items())[:threshold]), (0,))


@REPEATABLE
@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 5), st.randoms(use_true_random=False))
def test_as_many_wrong_values_are_found_as_half_of_those_to_spare(threshold: int, more: int, wrong: int, draw: Random) -> None:
    _, points = dealt(threshold, threshold + more)
    bent = draw.sample(sorted(points), min(wrong, len(points)))
    changed_ones = {position: shamir.drawn() for position in bent}
    if 2 * len(bent) <= more:
        assert shamir.wrong_positions({**points, **changed_ones}, threshold) == tuple(sorted(bent))
        return
    try:  # beyond that another polynomial may be nearer, never a wrong count of errors
        found = shamir.wrong_positions({**points, **changed_ones}, threshold)
    except SecureSumError:
        return
    assert 2 * len(found) <= more


def test_fewer_values_fit_every_secret_alike() -> None:
    # Of two of three values nothing follows: for any secret there is a third value that gives it.
    two = {1: shamir.drawn(), 2: shamir.drawn()}
    for wanted in (0, 1, shamir.PRIME - 1):
        # The parabola through (0, wanted) and both values, at 3: by Lagrange, 1·f(0) - 3·f(1) + 3·f(2).
        third = (wanted - 3 * two[1] + 3 * two[2]) % shamir.PRIME
        assert shamir.interpolated({**two, 3: third}, (0,)) == [wanted]


def test_bytes_that_are_no_element_are_refused() -> None:
    for data in (b"\xff" * 16, b"short", bytes(17)):
        with pytest.raises(SecureSumError):
            shamir.from_bytes(data)
    assert shamir.from_bytes(shamir.to_bytes(shamir.PRIME - 1)) == shamir.PRIME - 1
    assert shamir.element(b"\xff" * 16) == 158
