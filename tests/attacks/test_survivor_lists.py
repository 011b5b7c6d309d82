"""A server that tells clients different lists of a secure sum, to get both masks of one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pytest

from ifedicl.errors import SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.masks import mask
from ifedicl.secagg.party import Party
from ifedicl.settings import PrivacySettings
from tests.support.parties import NUMBERS, VICTIM, masked_parties, names_of, to


def told(names: list[str], threshold: int) -> dict[str, list[str]] | None:
    """A list of survivors for each client; each partner of the victim is left out of ``threshold`` of them."""
    partners, spare = names[1:threshold], len(names) - threshold
    left_out: dict[str, list[str]] = {name: [] for name in names}
    for partner in partners:
        holders = sorted((name for name in names if name not in (partner, VICTIM)), key=lambda name: len(left_out[name]))[
            :threshold
        ]
        if len(holders) < threshold or any(len(left_out[name]) >= spare for name in holders):
            return None
        for holder in holders:
            left_out[holder].append(partner)
    return {name: [other for other in names if other not in left_out[name]] for name in names}


def attack(count: int, threshold: int) -> npt.NDArray[np.int64]:
    """The victim's numbers, recovered by a server that tells each client other survivors.

    Raises:
        SecureSumError: a client does not reveal.
    """
    names = names_of(count)
    lists = told(names, threshold)
    assert lists is not None
    run = masked_parties(count, threshold, {VICTIM: names[:threshold]})
    lists[VICTIM] = names[:threshold]  # it knows of no others
    tags, roster = run.agree(lists), run.roster
    sent = {name: {sender: tags[sender].get(name, b"") for sender in names} for name in names}
    revealed = {name: run.parties[name].reveal(sent[name]) for name in names}
    found = run.masked[VICTIM] - mask(roster.own_seed(revealed[VICTIM].own, VICTIM), len(NUMBERS))
    for partner in names[1:threshold]:
        added = dict(zip(roster.corrected, run.deals[partner].pairs, strict=True))
        holders = [name for name in names if partner in revealed[name].pairs][:threshold]
        points = {
            roster.positions[name]: revealed[name].pairs[partner] - added.get(roster.positions[name], 0) for name in holders
        }
        (on,) = shamir.interpolated(points, (roster.positions[VICTIM],))
        shared = mask(roster.pair_seed(on + added.get(roster.positions[VICTIM], 0), VICTIM, partner), len(NUMBERS))
        found = found - shared if roster.sign(VICTIM, partner) > 0 else found + shared
    return found.astype(np.int64)


@pytest.mark.parametrize(("count", "threshold"), [(5, 3), (10, 6), (20, 12)])
def test_different_lists_of_survivors_unmask_nobody(count: int, threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SecureSumError, match="confirmed the lists that this client was told"):
        attack(count, threshold)
    # Without the defence, all of the victim's numbers.
    monkeypatch.setattr(Party, "_confirms", lambda *_: True)
    np.testing.assert_array_equal(attack(count, threshold), NUMBERS)


def threshold_of(count: int, colluders: int, dropout: float) -> int:
    rules = PrivacySettings(mode="secure", min_survivors=colluders + 2, dropout=dropout, colluders=colluders)
    return rules.threshold(count)


LEGAL = [
    (count, colluders, threshold_of(count, colluders, dropout))
    for count in range(3, 51)
    for colluders in range(min(count - 1, 12))
    for dropout in (0.0, 0.1, 0.3, 0.4, 0.49)
]


def test_no_legal_threshold_lets_two_lists_have_enough_signatures() -> None:
    for count, colluders, threshold in LEGAL:
        if threshold <= count:  # else there is no sum
            assert 2 * threshold > count + colluders, (count, colluders, threshold)
            assert threshold - colluders >= 2, "at least two honest clients are in a sum"


@pytest.mark.parametrize(("count", "threshold"), [(5, 3), (10, 6)])
def test_two_groups_that_are_told_different_lists_do_not_both_reveal(count: int, threshold: int) -> None:
    """The first group is told that the last clients were lost, the second that the first were."""
    names = names_of(count)
    run = masked_parties(count, threshold, {})
    first, second = names[:threshold], names[-threshold:]
    lists = {name: first if name in first[: count // 2] else second for name in names}
    tags = run.agree({name: lists[name] for name in names if name in lists[name]})
    revealing = 0
    for name in tags:
        try:
            run.parties[name].reveal(to(name, tags))
        except SecureSumError:
            continue
        revealing += 1
    assert revealing in (0, threshold)
    assert len({tuple(lists[name]) for name in tags}) == 2


def revealed_to_both_groups(count: int, colluders: int, threshold: int) -> tuple[int, int]:
    """How many of the victim's pairwise secrets and shares of its own a server gets that tells two groups different lists.

    The first group is told that the victim was lost, the second that it survived. Colluders confirm both lists.
    What the victim reveals itself counts as the threshold.
    """
    names = names_of(count)
    run = masked_parties(count, threshold, {})
    honest, told_lies = names[: count - colluders], names[count - colluders :]
    half = (len(honest) + 1) // 2
    groups = honest[half:], honest[:half]  # the victim itself must be told that it survived
    lists = [name for name in names if name != VICTIM], names
    shares = []
    for group, alive in zip(groups, lists, strict=True):
        if len(alive) < threshold:
            shares.append(0)
            continue
        content = run.roster.agreement(names, alive)
        tags = run.agree(dict.fromkeys(group, alive)) | {name: run.forged(content, name) for name in told_lies}
        got = colluders
        for name in group:
            with suppress(SecureSumError):
                revealed = run.parties[name].reveal(to(name, tags))
                if name == VICTIM:
                    got += threshold
                else:
                    got += VICTIM in (revealed.pairs if VICTIM not in alive else run.parties[name].shares([VICTIM]))
        shares.append(got)
    return shares[0], shares[1]


@pytest.mark.parametrize(("count", "colluders"), [(n, c) for n in range(3, 13) for c in range(n - 1) if n <= 8 or c in (0, 3)])
def test_two_groups_with_colluders_do_not_both_reveal_at_a_legal_threshold(count: int, colluders: int) -> None:
    legal = (count + colluders) // 2 + 1
    assert min(revealed_to_both_groups(count, colluders, legal)) < legal
    # One less, and both shares of the victim are there: the bound is sharp.
    if (count + colluders) % 2 == 0 and legal - 1 >= 2 and colluders < count - 2:
        assert min(revealed_to_both_groups(count, colluders, legal - 1)) >= legal - 1


@pytest.mark.soak
@pytest.mark.parametrize("count", range(13, 51))
def test_two_groups_with_colluders_do_not_both_reveal_in_large_sums(count: int) -> None:
    for colluders in (0, 1, count // 4, count // 2):
        legal = (count + colluders) // 2 + 1
        assert min(revealed_to_both_groups(count, colluders, legal)) < legal


def test_the_list_of_dealers_is_confirmed_too() -> None:
    """All are told the same survivors, and the victim fewer dealers: its mask would cover lost clients only."""
    names, threshold = names_of(5), 3
    few = names[:threshold]
    run = masked_parties(5, threshold, {VICTIM: few})
    tags = run.agree(dict.fromkeys(few, few))
    for name in few:
        with pytest.raises(SecureSumError, match="confirmed the lists"):
            run.parties[name].reveal(to(name, tags))


def test_a_client_confirms_no_list_without_itself_or_with_one_that_did_not_deal() -> None:
    names = names_of(5)
    for survivors, dealt in ((names[1:], names), (names[:4], names[:3]), (names[:2], names)):
        run = masked_parties(5, 3, {VICTIM: dealt})
        with pytest.raises(SecureSumError, match="survivors named"):
            run.parties[VICTIM].agree(survivors)


def test_tags_of_another_sum_of_strangers_and_for_others_do_not_count() -> None:
    names = names_of(4)
    run, other = masked_parties(4, 3, {}), masked_parties(4, 3, {})
    stale, own = to(VICTIM, other.agree(dict.fromkeys(names, names))), run.agree(dict.fromkeys(names, names))
    wrong = {**stale, VICTIM: own["c1"][VICTIM], "stranger": own["c1"][VICTIM], "c2": own["c2"]["c1"]}
    with pytest.raises(SecureSumError, match="1 survivors confirmed"):
        run.parties[VICTIM].reveal(wrong)


def test_a_wrong_tag_of_one_of_ten_stops_nobody() -> None:
    names = names_of(10)
    run = masked_parties(10, 7, {})
    tags = run.agree(dict.fromkeys(names, names))
    tags["c4"] = dict.fromkeys(names, bytes(8))
    for name in names:
        assert run.parties[name].reveal(to(name, tags))


# A model of the protocol: who reveals what, and what follows from it


def views(client: int, count: int, threshold: int) -> list[tuple[frozenset[int], frozenset[int]]]:
    """All lists of dealers and survivors that this client would go on with."""
    others = [other for other in range(count) if other != client]
    groups = [frozenset({client, *some}) for size in range(threshold - 1, count) for some in combinations(others, size)]
    return [(dealt, alive) for dealt in groups for alive in groups if alive <= dealt]


def strategies(count: int, colluders: int, threshold: int) -> Iterator[list[tuple[frozenset[int], frozenset[int]]]]:
    """All that a server can tell the honest clients; for five of them, all that one group and the rest can be told."""
    honest = range(count - colluders)
    choices = [views(client, count, threshold) for client in honest]
    if np.prod([float(len(choice)) for choice in choices]) <= 20_000:
        yield from map(list, product(*choices))
        return
    for leader in choices[0]:  # those who can sign the same lists do, in any number; each other one is told anything
        able = [client for client in honest if leader in choices[client]]
        for size in range(1, len(able) + 1):
            group = set(able[:size])
            thinned = [choice[:: max(1, len(choice) // 4)] for choice in choices]
            rest = [[leader] if client in group else thinned[client] for client in honest]
            yield from map(list, product(*rest))


def is_determined(told_: list[tuple[frozenset[int], frozenset[int]]], count: int, threshold: int, *, signed: bool) -> bool:
    """Whether the server, with the colluders, can take all masks off a combination of fewer honest clients than it may."""
    honest = range(len(told_))
    colluders = count - len(told_)

    def reveals(client: int) -> bool:
        dealt, alive = told_[client]
        same = sum(told_[other] == (dealt, alive) for other in honest if other in alive)
        return not signed or same + sum(other in alive for other in range(len(told_), count)) >= threshold

    revealing = [client for client in honest if reveals(client)]

    def is_known(owner: int, *, own: bool) -> bool:
        holders = [i for i in revealing if owner in told_[i][0] and (owner in told_[i][1]) is own]
        return (own and owner in revealing) or len(holders) + colluders >= threshold

    def is_told(teller: int, lost: int) -> bool:
        return teller in revealing and lost in told_[teller][0] - told_[teller][1]

    seeds, keys = ([is_known(k, own=own) for k in honest] for own in (True, False))
    pairs = [(k, j) for k, j in combinations(honest, 2) if not (keys[k] or keys[j] or is_told(k, j) or is_told(j, k))]
    rows = np.zeros((len(told_), len(told_) + len(pairs)))
    for k in honest:
        rows[k, k] = not seeds[k]
    for place, (k, j) in enumerate(pairs, start=len(told_)):
        rows[k, place] = j in told_[k][0]
        rows[j, place] = -(k in told_[j][0])
    fewer = [some for size in range(1, threshold - colluders) for some in combinations(honest, size)]
    return any(np.linalg.matrix_rank(rows[list(some)]) < len(some) for some in fewer)


@pytest.mark.parametrize(
    ("count", "colluders"), [(3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (5, 1), (5, 2), pytest.param(5, 0, marks=pytest.mark.soak)]
)
def test_no_lists_determine_fewer_honest_inputs_than_a_sum_must_have(count: int, colluders: int) -> None:
    threshold = (count + colluders) // 2 + 1
    tried = 0
    for told_ in strategies(count, colluders, threshold):
        tried += 1
        assert not is_determined(told_, count, threshold, signed=True), told_
    assert tried > 1 or threshold == count


def test_without_signed_lists_the_model_finds_the_attack() -> None:
    assert any(is_determined(told_, 4, 3, signed=False) for told_ in strategies(4, 0, 3)) or any(
        is_determined(told_, 5, 3, signed=False) for told_ in strategies(5, 0, 3)
    )
