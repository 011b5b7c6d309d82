"""Secure sum: the total is exact, a client's own numbers are hidden, and what is changed, replayed or out of order is refused.

Here the protocol alone, on made-up numbers; how a federation uses it is in ``test_secure_federation.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifedicl.errors import SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.channels import Channels
from ifedicl.secagg.fixed_point import FixedPoint
from ifedicl.secagg.keys import Identity
from ifedicl.secagg.masks import mask
from tests.support.parties import Session, drawn, met
from tests.support.uniform import NEVER, uniform_p

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=25)
GRID = FixedPoint(bits=40, fraction=16)


@settings(REPEATABLE, max_examples=10)
@given(st.data())
def test_the_total_is_exact_for_3_to_50_clients_with_any_drop_outs_up_to_the_threshold(data: st.DataObject) -> None:
    count = data.draw(st.sampled_from((3, 4, 5, 7, 12, 20, 50)))  # few of the many: fifty clients take a second
    threshold = data.draw(st.integers(count // 2 + 1, count))
    gone = data.draw(st.lists(st.integers(0, count - 1), max_size=count - threshold, unique=True))
    turns = [data.draw(st.integers(0, 2)) for _ in gone]  # after which turn each of them is lost
    lost = [frozenset(f"c{number}" for number, at in zip(gone, turns, strict=True) if at == turn) for turn in range(3)]
    session = Session(count, threshold)
    numbers = drawn(session)

    session.deal(without=lost[0])
    session.mask(numbers, without=lost[1])
    session.reveal(without=lost[2])

    expected = np.sum([numbers[name] for name in session.masked], axis=0)
    assert set(session.masked) == set(numbers) - lost[0] - lost[1]
    np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)


def test_one_client_fewer_than_the_threshold_reveals_nothing() -> None:
    session = Session(5, 4)
    session.deal()
    session.mask(drawn(session), without=frozenset({"c1"}))
    session.reveal(without=frozenset({"c3"}))
    with pytest.raises(SecureSumError, match="3 clients revealed; 4 are needed"):
        session.total()


def test_no_client_reveals_anything_of_fewer_survivors_than_the_threshold() -> None:
    session = Session(5, 4)
    session.deal()
    session.mask(drawn(session))
    with pytest.raises(SecureSumError, match="3 survivors"):
        session.parties["c0"].agree(["c0", "c1", "c2"])


def test_a_client_reveals_of_each_other_one_secret_only_whatever_the_server_claims() -> None:
    session = Session(4, 3)
    session.deal()
    session.mask(drawn(session))
    party, roster = session.parties["c0"], session.roster
    told = ["c0", "c1", "c2"]
    session.tags = {name: session.parties[name].agree(told) for name in told}
    first = party.reveal(session.tags_for("c0"))
    secret = session.channels["c0"].secret("c3", session.keys["c3"])
    assert secret is not None
    assert first.pairs == {"c3": roster.pair_secret(secret, "c0", "c3")}, "of one that was lost: the secret of one mask"
    assert roster.own_commitment(first.own, "c0") == session.deals["c0"].commitment
    with pytest.raises(SecureSumError, match="shares of others than the survivors"):
        party.shares(["c3"])
    with pytest.raises(SecureSumError, match="replayed or out of order"):
        party.agree(["c0", "c1", "c3"])


def test_survivors_that_fall_silent_after_their_numbers_arrived_are_in_the_total_beside_lost_ones() -> None:
    """Their own secrets, and the secrets that they share with the lost, follow from what the others reveal."""
    session = Session(10, 7)
    numbers = drawn(session)
    session.deal(without=frozenset({"c8"}))
    session.mask(numbers, without=frozenset({"c9"}))
    session.agree(without=frozenset({"c1"}))
    session.reveal()
    expected = np.sum([numbers[name] for name in session.masked], axis=0)
    np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)
    assert "c1" in session.masked
    assert "c1" not in session.revealed


# What the server sees


def recorded(numbers: npt.NDArray[np.int64]) -> tuple[bytes, bytes, bytes]:
    """Masked numbers, corrections and the revealed own secret of client c0, where all clients hold the same."""
    session = Session(12, 9)
    session.deal()
    session.mask(dict.fromkeys(session.parties, numbers))
    session.reveal()
    deal, own = session.deals["c0"], session.revealed["c0"].own
    published = b"".join(map(shamir.to_bytes, (*deal.own, *deal.pairs)))
    return GRID.packed(session.masked["c0"]), published + deal.commitment, shamir.to_bytes(own)


def test_one_clients_traffic_is_indistinguishable_from_uniform() -> None:
    zeros = np.zeros(50_000, dtype=np.int64)  # the worst case: nothing but the mask is there to hide it
    assert uniform_p(GRID.packed(zeros.astype(np.uint64))) < 1e-9, "the test itself sees unmasked numbers"
    masked, *_ = recorded(zeros)
    assert uniform_p(masked) > NEVER
    sums = [recorded(zeros[:1]) for _ in range(80)]
    both = [b"".join(deal for _, deal, _ in sums), b"".join(own for _, _, own in sums)]
    assert [uniform_p(data) > NEVER for data in both] == [True, True]


def test_the_difference_of_one_clients_traffic_in_two_rounds_with_equal_input_is_uniform() -> None:
    numbers = np.random.default_rng(3).integers(-(2**20), 2**20, 50_000)
    first, second = (GRID.unpacked(recorded(numbers)[0], len(numbers)) for _ in range(2))
    assert uniform_p(GRID.packed(first - second)) > NEVER


def test_all_but_one_colluding_client_and_the_server_see_only_the_others_sum() -> None:
    # Two honest clients: taking off every mask that colluders know leaves the mask that the two share.
    session = Session(4, 3)
    numbers = {name: np.zeros(50_000, dtype=np.int64) for name in session.parties}
    session.deal()
    session.mask(numbers)
    session.reveal()
    roster = session.roster
    left = session.masked["c0"].copy()
    left -= mask(roster.own_seed(session.revealed["c0"].own, "c0"), len(left))
    for colluder in ("c2", "c3"):
        shared = mask(roster.pair_seed(session.parties[colluder]._pair_secret("c0"), colluder, "c0"), len(left))
        left = left - shared if roster.sign("c0", colluder) > 0 else left + shared
    assert uniform_p(GRID.packed(left)) > NEVER
    shared = mask(roster.pair_seed(session.parties["c1"]._pair_secret("c0"), "c1", "c0"), len(left))
    assert not (left - shared).any(), "with the last mask gone too, the zeros are there"


# What is changed, replayed or out of order


CHANGES: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "a key that its client did not sign": lambda keys: {**keys, "c1": bytes(range(32))},
    "a key of another client": lambda keys: {**keys, "c1": keys["c2"]},
    "a client that nobody pins": lambda keys: {**keys, "stranger": keys["c1"]},
    "without the client itself": lambda keys: {name: key for name, key in keys.items() if name != "c0"},
    "with another key of the client itself": lambda keys: {**keys, "c0": b"k" * 32},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_roster_is_refused(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    session = Session(4, 3)
    with pytest.raises(SecureSumError):
        session.parties["c0"].deal(change(session.keys), 3)


def test_a_key_is_worth_nothing_in_another_job_or_under_another_name() -> None:
    pins = {name: Identity(name.encode()).public for name in ("c0", "c1", "c2")}
    own, other_job = Channels("c0", Identity(b"c0"), pins, "job"), met(3, job="another job")["c1"].introduction
    stranger = Channels("stranger", Identity(b"stranger"), {}, "job").introduction
    peer = met(3)["c1"].introduction
    for bad in (
        other_job,
        stranger,
        replace(peer, name="c2"),
        replace(peer, key=bytes(32)),
        replace(peer, signature=bytes(64)),
    ):
        own.meet(bad)
        assert own.secret(bad.name, bad.key) is None
    own.meet(peer)
    assert own.secret("c1", peer.key) is not None


def test_no_sum_has_the_masks_or_tags_of_another_with_the_same_channels() -> None:
    channels = met(3)
    one, other = Session(3, 3, channels=channels), Session(3, 3, channels=channels)
    numbers = drawn(one)
    for each in (one, other):
        each.deal()
        each.mask(numbers)
        each.agree()
    assert not set(one.masked["c0"]) & set(other.masked["c0"])
    with pytest.raises(SecureSumError, match="1 survivors confirmed"):
        one.parties["c0"].reveal(other.tags_for("c0"))


def test_a_client_deals_for_one_other_roster_before_numbers_are_masked_and_not_after() -> None:
    """The server learns who is ready after the clients dealt for those that it expected."""
    session = Session(4, 3)
    session.deal()
    session.keys = {name: key for name, key in session.keys.items() if name != "c3"}
    del session.parties["c3"]
    numbers = drawn(session)
    session.deal()
    session.mask(numbers)
    session.reveal()
    np.testing.assert_array_equal(GRID.numbers(session.total()), np.sum(list(numbers.values()), axis=0) * GRID.step)
    again = Session(3, 3)
    again.deal()
    again.deal()
    with pytest.raises(SecureSumError, match="replayed or out of order"):
        again.deal()
    again = Session(3, 3)
    again.deal()
    again.mask(drawn(again))
    with pytest.raises(SecureSumError, match="replayed or out of order"):
        again.parties["c0"].deal(again.keys, 3)


def test_no_step_is_taken_twice_or_early_and_an_error_ends_the_session() -> None:
    session = Session(3, 2)
    party, zeros = session.parties["c0"], np.zeros(3, dtype=np.int64)
    with pytest.raises(SecureSumError, match="step mask came, expected was deal"):
        party.mask(zeros, {})
    session = Session(3, 2)
    session.deal()
    session.mask(drawn(session, 3))
    with pytest.raises(SecureSumError, match="replayed"):
        session.parties["c1"].mask(zeros, session.deals)  # other numbers under the same masks: their difference
    with pytest.raises(SecureSumError, match="expected was nothing"):
        session.parties["c1"].reveal({})
    with pytest.raises(SecureSumError, match="expected was agree"):
        session.parties["c0"].shares(["c1"])


def test_too_few_dealers_are_refused_before_a_number_is_sent() -> None:
    session = Session(5, 4)
    session.deal(without=frozenset({"c3", "c4"}))
    with pytest.raises(SecureSumError, match="3 clients dealt"):
        session.parties["c0"].mask(np.zeros(3, dtype=np.int64), session.deals)


# Fixed point


@REPEATABLE
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.sampled_from([31, 32, 37, 40, 48, 56]),
    st.integers(0, 10),
)
def test_a_number_comes_back_within_half_a_step(values: list[float], bits: int, fraction: int) -> None:
    grid, numbers = FixedPoint(bits, fraction), np.array(values)
    assert np.abs(numbers).max() <= grid.limit(1)
    back = grid.numbers(grid.unpacked(grid.packed(grid.integers(numbers).astype(np.uint64)), len(numbers)))
    assert np.abs(back - numbers).max() <= grid.step / 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 2.0**23])
def test_what_does_not_fit_is_refused(value: float) -> None:
    with pytest.raises(SecureSumError, match="Lower the learning rate"):
        GRID.integers(np.array([0.0, value]))


def test_each_client_stays_within_its_part_of_the_range() -> None:
    # Each of 10 at the limit still sums to a number with the right sign; a step more is refused.
    most = int(GRID.limit(10) / GRID.step)
    GRID.check(np.full(3, most), 10)
    total = np.full(3, most * 10).astype(np.uint64)
    np.testing.assert_array_equal(GRID.numbers(total), most * 10 * GRID.step)
    with pytest.raises(SecureSumError, match="a sum of 10 clients"):
        GRID.check(np.array([0, -most - 1]), 10)


def test_packed_numbers_of_another_size_are_refused() -> None:
    with pytest.raises(SecureSumError, match="3 numbers have 15"):
        GRID.unpacked(bytes(12), 3)


@pytest.mark.parametrize("bits", [1, 9, 10, 18, 63])
def test_numbers_take_the_bits_that_they_need_and_no_more(bits: int) -> None:
    grid, whole = FixedPoint(bits, 0), np.random.default_rng(0).integers(0, 2**63, size=77).astype(np.uint64)
    packed = grid.packed(whole)
    assert len(packed) == grid.size(77) == -(-77 * bits // 8)
    np.testing.assert_array_equal(grid.unpacked(packed, 77), whole % 2**bits)


def test_a_number_that_wraps_comes_back_if_the_rest_is_known() -> None:
    grid, numbers = FixedPoint(9, 1), np.array([1000.25, -3.0, 90.0, -517.0])
    wrapped = grid.numbers(grid.wrapped_integers(numbers).astype(np.uint64))
    assert np.abs(wrapped).max() <= 128
    np.testing.assert_allclose(1000.0 + grid.wrapped(wrapped[:1] - 1000.0), 1000.25, atol=grid.step)
    np.testing.assert_allclose(wrapped[1:3], numbers[1:3], atol=grid.step)


def test_an_identity_lasts_as_long_as_its_secret() -> None:
    assert Identity(b"secret").public == Identity(b"secret").public
    assert Identity(b"secret").public != Identity(b"another").public
