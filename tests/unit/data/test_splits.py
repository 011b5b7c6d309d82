"""Splits and draws can be repeated."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifedicl import seeds
from ifedicl.data import Role, dirichlet_split, draw_pool, split_roles
from ifedicl.errors import DataError
from ifedicl.kinds.classify import Example
from tests.support import tiny


def test_an_example_keeps_its_role_when_others_are_added() -> None:
    many = tiny.examples(200)
    small = split_roles(many[:80], selection=0.3, gate=0.2, seed=1)
    large = split_roles(many, selection=0.3, gate=0.2, seed=1)
    for role in Role:
        assert small[role] == tuple(example for example in large[role] if example in many[:80])


def test_roles_share_out_every_example_once_in_the_fractions_asked_for() -> None:
    many = tiny.examples(2_000)
    roles = split_roles(many, selection=0.3, gate=0.1, seed=0)
    assert Counter(example for rows in roles.values() for example in rows) == Counter(many)
    assert abs(len(roles[Role.SELECTION]) / 2_000 - 0.3) < 0.04
    assert abs(len(roles[Role.GATE]) / 2_000 - 0.1) < 0.03
    assert roles != split_roles(many, selection=0.3, gate=0.1, seed=1)
    order = {example: number for number, example in enumerate(many)}
    assert all([order[e] for e in rows] == sorted(order[e] for e in rows) for rows in roles.values())


def test_no_fraction_holds_nothing_out() -> None:
    roles = split_roles(tiny.examples(50), selection=0.0, gate=0.0, seed=0)
    assert len(roles[Role.TRAIN]) == 50
    assert roles[Role.SELECTION] == roles[Role.GATE] == ()


@settings(deadline=None, max_examples=30)
@given(st.integers(20, 80), st.integers(1, 5), st.sampled_from([0.3, 1.0, 10.0]), st.integers(0, 3))
def test_a_split_deals_every_example_exactly_once(count: int, clients: int, alpha: float, seed: int) -> None:
    pool = tiny.examples(count, task=tiny.MANY_TOKENS)
    hands = dirichlet_split(pool, clients=clients, alpha=alpha, seed=seed)
    assert len(hands) == clients
    assert min(map(len, hands)) >= 2
    assert Counter(example for hand in hands for example in hand) == Counter(pool)
    assert hands == dirichlet_split(pool, clients=clients, alpha=alpha, seed=seed)


def test_another_seed_deals_otherwise() -> None:
    pool = tiny.examples(60)
    assert dirichlet_split(pool, clients=3, alpha=1.0, seed=0) != dirichlet_split(pool, clients=3, alpha=1.0, seed=1)


def test_small_alpha_is_more_uneven_than_large() -> None:
    pool = tiny.examples(300, task=tiny.MANY_TOKENS)

    def unevenness(alpha: float) -> float:
        values = []
        for seed in range(5):
            for hand in dirichlet_split(pool, clients=4, alpha=alpha, seed=seed):
                counts = Counter(example.label for example in hand)
                values.append(max(counts.values()) / len(hand))
        return float(np.mean(values))

    assert unevenness(0.1) > unevenness(1.0) + 0.1
    assert unevenness(1.0) > unevenness(1_000.0) + 0.1
    assert unevenness(1_000.0) == pytest.approx(1 / 3, abs=0.02)


def test_too_few_examples_for_the_clients_is_an_error() -> None:
    with pytest.raises(DataError, match="examples: received 5 for 3 clients; allowed: at least 2 for each"):
        dirichlet_split(tiny.examples(5), clients=3, alpha=1.0, seed=0)


def test_a_split_that_never_comes_out_is_an_error_and_no_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifedicl.data._SPLITS_TRIED", 500)
    pool = [Example(text, "good") for text in "abcd"]
    with pytest.raises(DataError, match=r"no Dirichlet\(1e-06\) split of 4 examples gave each of 2 clients 2 examples"):
        dirichlet_split(pool, clients=2, alpha=1e-6, seed=0)


def test_a_pool_is_drawn_without_replacement_in_file_order() -> None:
    many = tiny.examples(50)
    pool = draw_pool(many, 20, seed=0)
    places = [many.index(example) for example in pool]
    assert len(set(places)) == 20
    assert places == sorted(places)
    assert pool == draw_pool(many, 20, seed=0)
    assert pool != draw_pool(many, 20, seed=1)
    assert draw_pool(many, 50, seed=0) == draw_pool(many, 99, seed=0) == many


def test_keys_name_examples_by_text_and_label() -> None:
    keys = {Example("a", "b").key, Example("ab", "").key, Example("b", "a").key, Example("a", "c").key}
    assert len(keys) == 4
    assert Example("a", "b").key == Example("a", "b").key


def test_draws_derive_from_seed_and_path_alone() -> None:
    assert seeds.derive(0, "batch", "clinic", 3) == seeds.derive(0, "batch", "clinic", 3)
    others = {seeds.derive(1, "batch", "clinic", 3), seeds.derive(0, "batch", "clinic", 4), seeds.derive(0, "batch", "clinic3")}
    assert len({seeds.derive(0, "batch", "clinic", 3), *others}) == 4
    units = [seeds.unit(0, "u", number) for number in range(1_000)]
    assert 0 <= min(units) < 0.01
    assert 0.99 < max(units) < 1
    assert abs(np.mean(units) - 0.5) < 0.03
    assert 0 <= seeds.derive(5) < 2**63
