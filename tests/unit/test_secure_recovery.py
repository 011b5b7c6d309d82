"""Clients that reveal or deal what does not fit: the total is right or does not come out, and the log names whom it can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from ifedicl.errors import ObjectionError, SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.collector import disagreeing
from ifedicl.secagg.fixed_point import FixedPoint
from ifedicl.secagg.party import Revealed
from tests.support.parties import Session, drawn

GRID = FixedPoint(bits=40, fraction=16)


def bend(session: Session, holder: str, *owners: str) -> None:
    """The holder reveals something else of these clients, whichever of their secrets it is asked for."""
    session.bent[holder] = {owner: shamir.drawn() for owner in owners if owner in session.masked and owner != holder}
    own, pairs = session.revealed[holder].own, dict(session.revealed[holder].pairs)
    pairs |= {owner: shamir.drawn() for owner in owners if owner in pairs}
    session.revealed[holder] = Revealed(shamir.drawn() if holder in owners else own, pairs)


def revealed_after_losing(lost: str, count: int, threshold: int, silent: str) -> tuple[Session, npt.NDArray[np.int64]]:
    """A sum in which one client is lost before its numbers arrive, and one does not reveal; and its total."""
    session = Session(count, threshold)
    numbers = drawn(session)
    session.deal()
    session.mask(numbers, without=frozenset({lost}))
    session.reveal(without=frozenset({silent}))
    return session, np.sum([numbers[name] for name in session.masked], axis=0)


def test_a_changed_share_is_found_out() -> None:
    session, _ = revealed_after_losing("c4", 5, 3, "c1")
    bend(session, "c0", "c1")
    with pytest.raises(SecureSumError, match="to be corrected"):
        session.total()


@pytest.mark.parametrize("wrong", [1, 2])
def test_wrong_shares_of_a_silent_survivor_are_corrected(wrong: int, caplog: pytest.LogCaptureFixture) -> None:
    """Eight shares, and four are enough: a decoder corrects two wrong ones."""
    session, expected = revealed_after_losing("c9", 10, 4, "c8")
    for holder in [f"c{number}" for number in range(2, 2 + wrong)]:
        bend(session, holder, "c8")
    np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)
    if wrong == 1:
        assert "a share of c8 that c2 revealed was wrong; one of the two changed it" in caplog.text
    else:
        assert "c8 dealt wrong shares to 2 clients, or they changed them" in caplog.text


@pytest.mark.parametrize("wrong", [1, 4])
def test_wrong_secrets_of_masks_with_a_lost_client_follow_from_the_others_and_name_who_revealed_them(
    wrong: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight revealed, and four are enough: both sides published checks, so any that are left will do."""
    session, expected = revealed_after_losing("c9", 10, 4, "c8")
    for number in range(wrong):
        bend(session, f"c{number}", "c9")
    np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)
    for number in range(8):
        assert (f"c{number} revealed a wrong secret of its mask with c9" in caplog.text) is (number < wrong)


def test_holders_with_wrong_shares_of_two_clients_are_named(caplog: pytest.LogCaptureFixture) -> None:
    session = Session(12, 4)
    numbers = drawn(session)
    session.deal()
    session.mask(numbers)
    session.reveal(without=frozenset({"c8", "c9"}))
    bend(session, "c2", "c8", "c9")
    np.testing.assert_array_equal(GRID.numbers(session.total()), np.sum(list(numbers.values()), axis=0) * GRID.step)
    assert "c2 revealed 2 wrong shares of different clients" in caplog.text


@pytest.mark.parametrize("wrong", [3, 4, 5])
def test_more_wrong_shares_are_left_out_as_a_secret_can_be_checked_and_nobody_is_named(
    wrong: int, caplog: pytest.LogCaptureFixture
) -> None:
    session, expected = revealed_after_losing("c9", 10, 4, "c8")
    for number in range(wrong):
        bend(session, f"c{number}", "c8")
    if wrong == 5:
        with pytest.raises(ObjectionError, match="c8: too many of the revealed shares"):
            session.total()
        return
    np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)
    assert "more than can be told by name" in caplog.text
    assert "revealed" not in caplog.text


def test_too_many_wrong_secrets_of_masks_are_the_fault_of_those_who_revealed_them() -> None:
    session, _ = revealed_after_losing("c9", 10, 4, "c8")
    for number in range(5):
        bend(session, f"c{number}", "c9")
    with pytest.raises(ObjectionError) as raised:
        session.total()
    assert raised.value.names == ("c0", "c1", "c2", "c3", "c4")


def test_a_client_that_reveals_another_own_secret_is_named_and_the_others_shares_give_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = Session(6, 4)
    numbers = drawn(session)
    session.deal()
    session.mask(numbers)
    session.reveal()
    bend(session, "c2", "c2")
    np.testing.assert_array_equal(GRID.numbers(session.total()), np.sum(list(numbers.values()), axis=0) * GRID.step)
    assert "c2 revealed another own secret than it committed to" in caplog.text


@pytest.mark.parametrize("place", range(6))
def test_corrections_that_a_lost_client_bent_are_its_own_fault(place: int) -> None:
    """A secret that nobody revealed depends on them. Where all survivors reveal theirs, nobody needs them."""
    session, expected = revealed_after_losing("c9", 10, 4, "c8")
    pairs = list(session.deals["c9"].pairs)
    pairs[place] = shamir.drawn()
    session.deals["c9"] = replace(session.deals["c9"], pairs=tuple(pairs))
    if place == 5:  # at its own position
        np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)
        return
    with pytest.raises(ObjectionError, match="c9: too many"):
        session.total()
    session.revealed["c8"] = session.parties["c8"].reveal(session.tags_for("c8"))
    np.testing.assert_array_equal(GRID.numbers(session.total()), expected * GRID.step)


def test_two_clients_that_do_not_agree_on_a_secret_are_known_before_numbers_are_sent() -> None:
    session = Session(6, 4)
    session.deal()
    assert disagreeing(session.roster, session.deals) == []
    checks = bytearray(session.deals["c2"].checks)
    checks[2 * 4] ^= 1
    session.deals["c2"] = replace(session.deals["c2"], checks=bytes(checks))
    assert disagreeing(session.roster, session.deals) == [("c2", "c4")]
    del session.deals["c4"]
    assert disagreeing(session.roster, session.deals) == []
