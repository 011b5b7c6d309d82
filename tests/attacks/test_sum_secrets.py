"""What the secrets of a secure sum follow from: channel keys that a server swaps or replays, and public corrections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import pytest

from ifedicl.errors import ObjectionError, SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.channels import Channels
from ifedicl.secagg.keys import Identity
from ifedicl.secagg.party import Party
from tests.support.parties import NUMBERS, VICTIM, Masked, masked_parties, names_of, to

BINDING = b"b" * 32

# Keys: each sum takes its secrets from those of the job


def keys_seen_by(run: Masked, changed: Mapping[str, Mapping[str, bytes]]) -> dict[str, Party]:
    """Fresh parties, each of which was told other keys of some clients, and has sent masked numbers."""
    parties = {name: Party(own, BINDING) for name, own in run.channels.items()}
    for name, party in parties.items():
        party.deal({**run.roster.keys, **changed.get(name, {})}, run.roster.threshold)
        party.mask(NUMBERS, list(parties))
    return parties


@pytest.mark.parametrize(
    ("told_wrong", "revealing"), [(("c1",), 4), (("c1", "c2"), 0), (("c1", "c2", "c3"), 0)], ids=["one", "two", "three"]
)
def test_clients_that_were_told_different_keys_of_a_third_are_in_no_total_together(
    told_wrong: tuple[str, ...], revealing: int
) -> None:
    """A colluder may sign two keys for one job, or a client that started again may have an earlier one that is replayed."""
    names = names_of(5)
    run = masked_parties(5, 4, {})
    second = Channels("c4", Identity(b"c4"), {}, "job").introduction
    for name in told_wrong:
        run.channels[name].meet(second)
    parties = keys_seen_by(run, {name: {"c4": second.key} for name in told_wrong})
    tags = {name: party.agree(names) for name, party in parties.items()}
    revealed = set()
    for name, party in parties.items():
        with suppress(SecureSumError):
            party.reveal(to(name, tags))
            revealed.add(name)
    assert len(revealed) == revealing
    assert not revealed & set(told_wrong)


def test_a_client_is_on_no_roster_with_a_key_of_before_its_restart() -> None:
    run = masked_parties(5, 4, {})
    again = Channels(VICTIM, Identity(VICTIM.encode()), {}, "job")
    with pytest.raises(SecureSumError, match="the key that this client made for this job"):
        Party(again, BINDING).deal(run.roster.keys, 4)


@pytest.mark.parametrize("change", ["unsigned", "another job", "another name"])
def test_a_forged_key_that_one_client_is_told_is_objected_to_by_name(change: str) -> None:
    run = masked_parties(5, 4, {})
    mallory = {
        "unsigned": replace(Channels("c3", Identity(b"mallory"), {}, "job").introduction),
        "another job": Channels("c3", Identity(b"c3"), {}, "another job").introduction,
        "another name": replace(Channels("c4", Identity(b"c4"), {}, "job").introduction, name="c3"),
    }[change]
    run.channels[VICTIM].meet(mallory)
    with pytest.raises(ObjectionError) as raised:
        Party(run.channels[VICTIM], BINDING).deal({**run.roster.keys, "c3": mallory.key}, 4)
    assert raised.value.names == ("c3",)


# What the corrections say: they are public, and the secrets of all clients are entangled


def rows_of(count: int) -> list[list[int]]:
    """Pairwise secrets as a symmetric matrix, with each client's own drawn value on the diagonal."""
    rows = [[0] * count for _ in range(count)]
    for one in range(count):
        for other in range(one + 1):
            rows[one][other] = rows[other][one] = shamir.drawn()
    return rows


@pytest.mark.parametrize(
    "count", [*range(3, 13), pytest.param(20, marks=pytest.mark.soak), pytest.param(50, marks=pytest.mark.soak)]
)
def test_other_pairwise_secrets_fit_all_that_the_server_and_colluders_see(count: int) -> None:
    """All corrections, the rows of as many lost clients as a sum survives, and those of colluders."""
    for colluders in range(count - 1):
        threshold = (count + colluders) // 2 + 1
        if threshold > count:
            continue
        known = list(range(1, count - threshold + colluders + 1))  # positions; any others do as well
        rows = rows_of(count)

        def vanishing(position: int, known: list[int] = known) -> int:
            return math.prod(position - other for other in known)

        others = [
            [(secret + vanishing(one) * vanishing(other)) % shamir.PRIME for other, secret in enumerate(row, start=1)]
            for one, row in enumerate(rows, start=1)
        ]
        for one, (row, other) in enumerate(zip(rows, others, strict=True), start=1):
            assert shamir.corrections(row, threshold) == shamir.corrections(other, threshold)
            different = [place for place, (a, b) in enumerate(zip(row, other, strict=True), start=1) if a != b]
            assert different == ([] if one in known else [place for place in range(1, count + 1) if place not in known])


def test_with_one_client_more_all_pairwise_secrets_follow() -> None:
    """The bound is sharp: the rows of ``threshold`` clients give all the others with the corrections."""
    count, threshold = 6, 4
    rows = rows_of(count)
    added = [dict(zip(range(threshold + 1, count + 1), shamir.corrections(row, threshold), strict=True)) for row in rows]
    for one in range(threshold, count):
        points = {place: rows[place - 1][one] - added[one].get(place, 0) for place in range(1, threshold + 1)}
        found = shamir.interpolated(points, range(1, count + 1))
        assert [(on + added[one].get(place, 0)) % shamir.PRIME for place, on in enumerate(found, start=1)][one + 1 :] == rows[
            one
        ][one + 1 :]
