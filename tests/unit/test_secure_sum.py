"""Secure sum: the total is exact, a client's own numbers are hidden, and what is changed, replayed or out of order is refused.

Here the protocol alone, on made-up numbers; how a federation uses it is in ``test_secure_federation.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifedicl.errors import SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.collector import unmasked
from ifedicl.secagg.fixed_point import FixedPoint
from ifedicl.secagg.keys import Identity
from ifedicl.secagg.masks import Integers, mask
from ifedicl.secagg.party import Deal, Party
from ifedicl.secagg.roster import Advert, Roster
from tests.support.uniform import NEVER, uniform_p

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=25)
GRID = FixedPoint(bits=40, fraction=16)
BINDING = b"b" * 32


@dataclass
class Session:
    """One sum among parties, turn by turn, with all that crosses; a test may bend it on its way."""

    count: int
    threshold: int
    binding: bytes = BINDING
    parties: dict[str, Party] = field(default_factory=dict)
    adverts: dict[str, Advert] = field(default_factory=dict)
    deals: dict[str, Deal] = field(default_factory=dict)
    masked: dict[str, Integers] = field(default_factory=dict)
    signatures: dict[str, bytes] = field(default_factory=dict)
    revealed: dict[str, Mapping[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [f"c{number}" for number in range(self.count)]
        identities = {name: Identity(name.encode()) for name in names}
        pins = {name: identity.public for name, identity in identities.items()}
        self.parties = {name: Party(name, identities[name], pins, self.binding) for name in names}

    def advertise(self) -> None:
        self.adverts = {name: party.advertise() for name, party in self.parties.items()}

    def deal(self, *, without: frozenset[str] = frozenset()) -> None:
        dealt = {name: party.deal(self.adverts, self.threshold) for name, party in self.parties.items()}
        self.deals = {name: deal for name, deal in dealt.items() if name not in without}

    def sealed_for(self, name: str) -> dict[str, bytes]:
        return {sender: deal.sealed[name] for sender, deal in self.deals.items() if sender != name}

    def mask(self, numbers: Mapping[str, npt.NDArray[np.int64]], *, without: frozenset[str] = frozenset()) -> None:
        sent = {name: self.parties[name].mask(numbers[name], self.sealed_for(name)) for name in self.deals}
        self.masked = {name: integers for name, integers in sent.items() if name not in without}

    def agree(self, *, without: frozenset[str] = frozenset()) -> None:
        self.signatures = {name: self.parties[name].agree(self.masked) for name in self.masked if name not in without}

    def reveal(self, *, without: frozenset[str] = frozenset()) -> None:
        """The last step, and the one before it if it was not taken."""
        if not self.signatures:
            self.agree()
        signers = [name for name in self.signatures if name not in without]
        self.revealed = {name: self.parties[name].reveal(self.signatures) for name in signers}

    def total(self) -> Integers:
        roster = Roster(self.binding, self.adverts, self.threshold)
        return unmasked(roster, {name: deal.commitment for name, deal in self.deals.items()}, self.masked, self.revealed)


def drawn(session: Session, size: int = 6, seed: int = 0) -> dict[str, npt.NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    return {name: draw.integers(-(2**30), 2**30, size) for name in session.parties}


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

    session.advertise()
    session.deal(without=lost[0])
    session.mask(numbers, without=lost[1])
    session.reveal(without=lost[2])

    expected = np.sum([numbers[name] for name in session.masked], axis=0)
    assert set(session.masked) == set(numbers) - lost[0] - lost[1]
    np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)


def test_one_client_fewer_than_the_threshold_reveals_nothing() -> None:
    session = Session(5, 4)
    session.advertise()
    session.deal()
    session.mask(drawn(session), without=frozenset({"c1"}))
    session.reveal(without=frozenset({"c3"}))
    with pytest.raises(SecureSumError, match="3 clients revealed shares; 4 are needed"):
        session.total()


def test_no_client_reveals_anything_of_fewer_survivors_than_the_threshold() -> None:
    session = Session(5, 4)
    session.advertise()
    session.deal()
    session.mask(drawn(session))
    with pytest.raises(SecureSumError, match="3 survivors"):
        session.parties["c0"].agree(["c0", "c1", "c2"])


def test_a_client_reveals_of_each_other_one_share_only_whatever_the_server_claims() -> None:
    session = Session(4, 3)
    session.advertise()
    session.deal()
    session.mask(drawn(session))
    party = session.parties["c0"]
    told = ["c0", "c1", "c2"]
    signatures = {name: session.parties[name].agree(told) for name in told}
    first = party.reveal(signatures)
    assert first["c1"] == party._held["c1"][1], "of a survivor: its own secret"
    assert first["c3"] == party._held["c3"][0], "of one that dropped out: its mask key"
    with pytest.raises(SecureSumError, match="replayed or out of order"):
        party.agree(["c0", "c1", "c3"])


# What the server sees


def recorded(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], bytes, bytes]:
    """Masked numbers, sealed shares and revealed shares of client c0, where all clients hold the same."""
    session = Session(12, 9)
    session.advertise()
    session.deal()
    session.mask(dict.fromkeys(session.parties, numbers))
    session.reveal()
    sealed, revealed = (b"".join(part.values()) for part in (session.deals["c0"].sealed, session.revealed["c0"]))
    return GRID.packed(session.masked["c0"]), sealed, revealed


def test_one_clients_traffic_is_indistinguishable_from_uniform() -> None:
    zeros = np.zeros(50_000, dtype=np.int64)  # the worst case: nothing but the mask is there to hide it
    assert uniform_p(GRID.packed(zeros.astype(np.uint64)).tobytes()) < 1e-9, "the test itself sees unmasked numbers"
    masked, *_ = recorded(zeros)
    assert uniform_p(masked.tobytes()) > NEVER
    sums = [recorded(zeros[:1]) for _ in range(12)]
    shares = [b"".join(sealed for _, sealed, _ in sums), b"".join(revealed for _, _, revealed in sums)]
    assert [uniform_p(data) > NEVER for data in shares] == [True, True]


def test_the_difference_of_one_clients_traffic_in_two_rounds_with_equal_input_is_uniform() -> None:
    numbers = np.random.default_rng(3).integers(-(2**20), 2**20, 50_000)
    first, second = (GRID.unpacked(recorded(numbers)[0]) for _ in range(2))
    assert uniform_p(GRID.packed(first - second).tobytes()) > NEVER


def test_all_but_one_colluding_client_and_the_server_see_only_the_others_sum() -> None:
    # Two honest clients: taking off every mask that colluders know leaves the mask that the two share.
    session = Session(4, 3)
    numbers = {name: np.zeros(50_000, dtype=np.int64) for name in session.parties}
    session.advertise()
    session.deal()
    session.mask(numbers)
    session.reveal()
    roster = Roster(BINDING, session.adverts, 3)
    left = session.masked["c0"].copy()
    own = shamir.join({roster.positions[name]: session.revealed[name]["c0"] for name in ("c1", "c2", "c3")})
    left -= mask(roster.own_seed(own, "c0"), len(left))
    for colluder in ("c2", "c3"):
        shared = mask(roster.pair_seed(session.parties[colluder]._secrets["c0"][0], colluder, "c0"), len(left))
        left = left - shared if roster.sign("c0", colluder) > 0 else left + shared
    assert uniform_p(GRID.packed(left).tobytes()) > NEVER
    shared = mask(roster.pair_seed(session.parties["c1"]._secrets["c0"][0], "c1", "c0"), len(left))
    assert not (left - shared).any(), "with the last mask gone too, the zeros are there"


# What is changed, replayed or out of order


def changed(data: bytes, place: int = 5) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_changed_sealed_share_is_refused_by_its_receiver() -> None:
    session = Session(3, 2)
    session.advertise()
    session.deal()
    sealed = session.sealed_for("c0")
    with pytest.raises(SecureSumError, match="c1: the shares that they sealed do not open"):
        session.parties["c0"].mask(np.zeros(3, dtype=np.int64), {**sealed, "c1": changed(sealed["c1"])})


def test_a_share_sealed_in_an_earlier_session_or_for_another_client_is_refused() -> None:
    old, session = Session(3, 2), Session(3, 2)
    for each in (old, session):
        each.advertise()
        each.deal()
    with pytest.raises(SecureSumError, match="do not open"):
        session.parties["c0"].mask(np.zeros(3, dtype=np.int64), old.sealed_for("c0"))
    with pytest.raises(SecureSumError, match="do not open"):
        session.parties["c1"].mask(np.zeros(3, dtype=np.int64), {"c0": session.deals["c0"].sealed["c2"]})


CHANGES: dict[str, Callable[[dict[str, Advert]], dict[str, Advert]]] = {
    "a key that its client did not sign": lambda adverts: {**adverts, "c1": replace(adverts["c1"], mask_key=bytes(range(32)))},
    "a signature of another client": lambda adverts: {**adverts, "c1": replace(adverts["c2"])},
    "a client that nobody pins": lambda adverts: {**adverts, "stranger": adverts["c1"]},
    "without the client itself": lambda adverts: {name: advert for name, advert in adverts.items() if name != "c0"},
    "with another key of the client itself": lambda adverts: {**adverts, "c0": replace(adverts["c0"], mask_key=b"k" * 32)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_roster_is_refused(change: Callable[[dict[str, Advert]], dict[str, Advert]]) -> None:
    session = Session(4, 3)
    session.advertise()
    with pytest.raises(SecureSumError):
        session.parties["c0"].deal(change(session.adverts), 3)


def test_adverts_of_another_session_or_request_are_refused() -> None:
    session, other = Session(3, 2), Session(3, 2, binding=b"o" * 32)
    session.advertise()
    other.advertise()
    with pytest.raises(SecureSumError, match="c1: their keys are not pinned here, not signed"):
        session.parties["c0"].deal({**session.adverts, "c1": other.adverts["c1"]}, 2)


@pytest.mark.parametrize("owner", ["c1", "c3"], ids=["of a survivor's own mask", "of a lost client's mask key"])
def test_a_changed_revealed_share_is_found_out(owner: str) -> None:
    session = Session(4, 3)
    session.advertise()
    session.deal()
    session.mask(drawn(session), without=frozenset({"c3"}))
    session.reveal()
    session.revealed["c0"] = {**session.revealed["c0"], owner: changed(session.revealed["c0"][owner])}
    with pytest.raises(SecureSumError, match="to be corrected"):
        session.total()


@pytest.mark.parametrize("wrong", [1, 2])
@pytest.mark.parametrize("owner", ["c1", "c9"], ids=["of a survivor's own mask", "of a lost client's mask key"])
def test_wrong_shares_are_corrected_and_their_holders_named(owner: str, wrong: int, caplog: pytest.LogCaptureFixture) -> None:
    """Nine shares, and five are enough: a decoder corrects two wrong ones."""
    session = Session(10, 5)
    numbers = drawn(session)
    session.advertise()
    session.deal()
    session.mask(numbers, without=frozenset({"c9"}))
    session.reveal()
    for holder in [f"c{number}" for number in range(2, 2 + wrong)]:
        bent = {name: changed(share) for name, share in session.revealed[holder].items() if name in {owner, "c0"}}
        session.revealed[holder] = {**session.revealed[holder], **bent}
    expected = np.sum([numbers[name] for name in session.masked], axis=0)
    np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)
    assert "c2 revealed 2 wrong shares of different clients" in caplog.text
    assert ("c3 revealed" in caplog.text) is (wrong == 2)


@pytest.mark.parametrize("wrong", [3, 4, 5])
def test_more_wrong_shares_are_left_out_as_a_secret_can_be_checked_and_nobody_is_named(
    wrong: int, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(10, 5)
    numbers = drawn(session)
    session.advertise()
    session.deal()
    session.mask(numbers, without=frozenset({"c9"}))
    session.reveal()
    for number in range(wrong):
        session.revealed[f"c{number}"] = {name: shamir.drawn() for name in session.revealed[f"c{number}"]}
    if wrong == 5:
        with pytest.raises(SecureSumError, match="who changed them cannot be told"):
            session.total()
        return
    expected = np.sum([numbers[name] for name in session.masked], axis=0)
    np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)
    assert "more than can be told by name" in caplog.text
    assert "revealed" not in caplog.text


def test_who_changed_a_single_share_is_not_guessed(caplog: pytest.LogCaptureFixture) -> None:
    session = Session(6, 4)
    session.advertise()
    session.deal()
    session.mask(drawn(session))
    session.reveal()
    session.revealed["c2"] = {**session.revealed["c2"], "c1": changed(session.revealed["c2"]["c1"])}
    session.total()
    assert "a share of c1 that c2 revealed was wrong; one of the two changed it" in caplog.text


def test_no_turn_is_taken_twice_or_early_and_an_error_ends_the_session() -> None:
    session = Session(3, 2)
    party, zeros = session.parties["c0"], np.zeros(3, dtype=np.int64)
    with pytest.raises(SecureSumError, match="step mask came, expected was advertise"):
        party.mask(zeros, {})
    session = Session(3, 2)
    session.advertise()
    session.deal()
    session.mask(drawn(session, 3))
    with pytest.raises(SecureSumError, match="replayed"):
        session.parties["c1"].mask(zeros, session.sealed_for("c1"))  # other numbers under the same masks: their difference
    with pytest.raises(SecureSumError, match="expected was nothing"):
        session.parties["c1"].reveal({})


def test_too_few_dealers_are_refused_before_a_number_is_sent() -> None:
    session = Session(5, 4)
    session.advertise()
    session.deal(without=frozenset({"c3", "c4"}))
    with pytest.raises(SecureSumError, match="2 other clients dealt"):
        session.parties["c0"].mask(np.zeros(3, dtype=np.int64), session.sealed_for("c0"))


# Fixed point


@REPEATABLE
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.sampled_from([32, 40, 48, 56]),
    st.integers(0, 10),
)
def test_a_number_comes_back_within_half_a_step(values: list[float], bits: int, fraction: int) -> None:
    grid, numbers = FixedPoint(bits, fraction), np.array(values)
    assert np.abs(numbers).max() <= grid.limit(1)
    back = grid.numbers(grid.unpacked(grid.packed(grid.integers(numbers).astype(np.uint64))))
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


def test_packed_numbers_of_another_width_are_refused() -> None:
    with pytest.raises(SecureSumError):
        GRID.unpacked(np.zeros((3, 4), dtype=np.uint8))


def test_an_identity_lasts_as_long_as_its_secret() -> None:
    assert Identity(b"secret").public == Identity(b"secret").public
    assert Identity(b"secret").public != Identity(b"another").public
