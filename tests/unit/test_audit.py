"""The attacks: each must succeed where it must, fail where it must, and say so with figures that can be checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from _narrow_frame import NarrowFrame
from ifedicl import cli
from ifedicl.audit.conclusion import conclusion
from ifedicl.audit.defence import DELTA, Defence, budgets
from ifedicl.audit.differencing import attack_difference
from ifedicl.audit.guessing import Game, game_of, one_run, one_run_epsilon
from ifedicl.audit.markdown import page, summary
from ifedicl.audit.membership import Outsider, insider, play_membership
from ifedicl.audit.mix import Span, class_means, mix_attack
from ifedicl.audit.plot import plot
from ifedicl.audit.suite import Evidence, run_attacks
from ifedicl.audit.victims import Victims, rare_words
from ifedicl.audit.words import Inverter, best_layer, lens, nearest_word, recover_words, word_directions
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from tests.support import tiny

ROWS = np.random.default_rng(5).standard_normal((120, 40))


def draw() -> np.random.Generator:
    return np.random.default_rng(7)


# --- the public frame --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 3])
def test_a_measured_vector_comes_back_as_far_as_the_frame_reaches(rank: int) -> None:
    numbers = draw()
    public = numbers.standard_normal((50, 3, 2, 8)) * np.array([1.0, 30.0])[:, None] + 5
    frame = NarrowFrame.of(public, rank, numbers)
    inside = frame.to_vector(frame.to_rows(public[:1])[0])
    np.testing.assert_allclose(frame.to_rows(inside[None]), frame.to_rows(public[:1]), atol=1e-4)
    assert frame.size == 3 * 2 * (rank or 8)
    assert rank or np.allclose(inside, public[0], atol=1e-4)
    # A write thirty times as large weighs no more.
    norms = np.linalg.norm(frame.to_rows(public).reshape(50, 3, 2, -1), axis=-1).mean(axis=(0, 1))
    assert norms[0] == pytest.approx(norms[1], rel=0.2)


# --- what guesses prove ------------------------------------------------------------------------------------------------


def test_scores_without_a_difference_prove_nothing() -> None:
    game = game_of(draw().standard_normal(2000), np.random.default_rng(8).standard_normal(2000), DELTA)
    assert game.auc == pytest.approx(0.5, abs=0.03)
    assert game.bound < 0.35


def test_the_auc_is_that_of_all_pairs() -> None:
    inside, outside = draw().standard_normal(40) + 1, np.random.default_rng(8).standard_normal(30)
    assert game_of(inside, outside, DELTA).auc == pytest.approx((inside[:, None] > outside).mean())


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_the_bound_of_an_exact_mechanism_is_below_its_epsilon_and_near_it(epsilon: float) -> None:
    # Randomised response: says the truth with probability e^ε / (1 + e^ε).
    truth = 1 / (1 + math.exp(-epsilon))
    inside, outside = (draw().random(20_000) < truth) * 1.0, (np.random.default_rng(8).random(20_000) > truth) * 1.0
    assert 0.8 * epsilon < game_of(inside, outside, 0.0).bound <= epsilon


def test_perfect_guesses_prove_as_much_as_their_number_can() -> None:
    game = game_of(np.ones(1000), np.zeros(1000), 0.0)
    # Clopper-Pearson of 500 right of 500: both rates are bounded by 1 - 0.025^(1/500).
    worst = 1 - 0.025 ** (1 / 500)
    assert game.bound == pytest.approx(math.log((1 - worst) / worst), rel=1e-6)
    assert (game.auc, game.caught) == (1.0, 1.0)


def test_one_run_proves_what_the_binomial_law_says() -> None:
    # Without δ: the largest ε at which this number of right guesses has a probability of 5%.
    bound = one_run_epsilon(100, 100, 90, 0.0)
    assert stats.binom.sf(89, 100, 1 / (1 + math.exp(-bound))) == pytest.approx(0.05, rel=1e-3)
    assert one_run_epsilon(100, 100, 50, 0.0) == 0.0
    assert one_run_epsilon(100, 100, 90, 1e-3) < bound


def test_one_run_of_a_private_mechanism_proves_no_more_than_its_epsilon() -> None:
    epsilon, beyond = 1.0, 0
    for seed in range(20):
        coins = np.random.default_rng(seed)
        present = coins.random(200) < 0.5
        honest = coins.random(200) < 1 / (1 + math.exp(-epsilon))
        scores = np.where(honest, present, ~present) + 1e-3 * coins.random(200)
        beyond += one_run(scores, present, 0.0) > epsilon
    assert beyond <= 4


# --- membership --------------------------------------------------------------------------------------------------------


def _inside(defence: Defence, trials: int) -> Game:
    kept = defence.clipped(ROWS)
    return play_membership(kept, 8, defence, insider(kept), trials=trials, draw=draw())


def test_an_insider_wins_without_noise_and_loses_most_with_it() -> None:
    open_game = _inside(Defence(), 400)
    assert open_game.auc == 1.0
    hidden = _inside(Defence.of(1.0, 3.0, 40), 2000)
    assert 0.5 < hidden.auc < 0.75
    assert hidden.bound <= 1.0


def test_too_little_noise_is_caught() -> None:
    """An audit that could not fail would be worth nothing: noise for ε = 40 that is sold as 1."""
    assert _inside(Defence.of(40.0, 3.0, 40), 2000).bound > 1.0


def test_an_outsider_tells_less_the_more_examples_there_are() -> None:
    bare, outsider = Defence().clipped(ROWS), Outsider(ROWS[:60])
    aucs = [play_membership(bare, n, Defence(), outsider.filters(bare, n), trials=600, draw=draw()).auc for n in (1, 8, 64)]
    assert aucs[0] > 0.99
    assert aucs[0] > aucs[1] > aucs[2] > 0.5


# --- mix and differencing ----------------------------------------------------------------------------------------------


def test_the_mix_of_known_means_is_read_off_exactly() -> None:
    means = draw().standard_normal((4, 40))
    span = Span(means)
    mixture = span.mixture(span.within(np.array([0.1, 0.0, 0.6, 0.3]) @ means))
    np.testing.assert_allclose(mixture, [0.1, 0.0, 0.6, 0.3], atol=1e-3)
    assert span.mixture(span.within(1e3 * draw().standard_normal(40))).sum() == pytest.approx(1.0)


def test_a_mix_is_guessed_from_one_client_and_hidden_by_ten() -> None:
    labels = np.arange(120) % 3
    rows = ROWS + 3 * draw().standard_normal((3, 40))[labels]
    means = class_means(rows, labels, 3)
    alone, among = (mix_attack(rows, labels, means, 32, Defence(), groups=30, draw=draw(), clients=k) for k in (1, 10))
    assert alone.error < 0.15 < among.error
    assert alone.error < 0.5 * alone.blind


def test_an_example_that_was_added_alone_is_named_unless_there_is_noise() -> None:
    centre = np.zeros(40)
    bare = attack_difference(ROWS, centre, 32, 1, Defence(), trials=30, draw=draw())
    assert bare.named == 1.0
    assert bare.cosine > 0.99
    hidden = attack_difference(ROWS, centre, 32, 1, Defence.of(1.0, 3.0, 40), trials=30, draw=draw())
    assert hidden.named < 0.4


# --- words -------------------------------------------------------------------------------------------------------------


def _planted(backbone: Backbone) -> tuple[Victims, np.ndarray]:
    """Texts of three tokens each whose vectors are, in the last layer, the sum of their embeddings."""
    embeddings = backbone.model.get_input_embeddings().weight.detach().numpy()
    coins, candidates = draw(), np.arange(20, 320)
    tokens = [frozenset(map(int, coins.choice(candidates, 3, replace=False))) for _ in range(200)]
    vectors = 0.01 * coins.standard_normal((200, backbone.layers, 2, backbone.width))
    vectors[:, -1, 1] += np.stack([embeddings[list(own)].sum(axis=0) for own in tokens])
    return Victims(vectors.astype(np.float32), tuple(tokens), np.zeros(200, dtype=np.int64)), candidates


def test_planted_words_come_back_from_one_text_and_less_from_many(backbone: Backbone) -> None:
    texts, candidates = _planted(backbone)
    public, private = texts.take(range(150)), texts.take(range(150, 200))
    centre = public.vectors.mean(axis=0)
    directions = word_directions(backbone, candidates)

    def attack(name: str) -> Any:
        if name == "inverter":
            return Inverter(directions, candidates, public, np.ones((backbone.layers, 2), dtype=np.float32))
        form, _ = best_layer(lambda layer, below: nearest_word(directions, centre, layer, below), public, candidates)
        assert form[0] == 2
        return nearest_word(directions, centre, *form)

    for name in ("nearest", "inverter"):
        attacker = attack(name)
        one = recover_words(attacker, private.vectors, private.tokens, candidates, 1)
        means = private.vectors.reshape(5, 10, *centre.shape).mean(axis=1)
        unions = [frozenset().union(*private.tokens[10 * group : 10 * group + 10]) for group in range(5)]
        many = recover_words(attacker, means, unions, candidates, 10)
        assert one.recall > 0.5, name
        assert one.baseline < 0.1, name
        assert many.recall - many.baseline < one.recall - one.baseline, name
    assert lens(backbone, candidates, centre, 2, False)(private.vectors).shape == (50, 300)


def test_rare_words_are_in_few_public_texts_and_never_of_the_prompt() -> None:
    words = np.array([True, True, True, False])
    tokens = tuple(frozenset({0, 2} if number < 9 else {2}) for number in range(300))
    public = Victims(np.zeros((300, 1, 2, 1), np.float32), tokens, np.zeros(300, np.int64))
    assert rare_words(words, public, frozenset({1})).tolist() == [False, False, False, False]
    assert rare_words(words, public.take(range(9, 300)), frozenset()).tolist() == [True, True, False, False]


# --- the whole audit ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(request: pytest.FixtureRequest) -> dict[str, Any]:
    backbone: Backbone = request.getfixturevalue("backbone")
    scorer = Scorer(backbone, tiny.TASK)
    rows = tiny.examples(70)
    evidence = Evidence.of(scorer, rows[:35], rows[35:], tiny.method(), updates=20)
    return run_attacks(evidence, backbone, trials=100, seed=0, epsilons=(1.0, 8.0))


def test_every_attack_is_tried_with_and_without_every_defence(tables: dict[str, Any]) -> None:
    assert set(tables) == {"words", "membership", "updates", "mix", "differencing"}
    for rows in tables.values():
        assert {row["epsilon"] for row in rows} == {None, 1.0, 8.0}
    assert all(row["trials"] >= 100 for row in tables["membership"])


def test_the_page_says_it_in_words_and_shows_no_text(tables: dict[str, Any]) -> None:
    written = page("Audit of ward 3", {"examples": 35}, tables)
    assert "With 1 example," in written
    assert "of their rare words come back" in written
    assert len(summary(tables)) > 6
    assert not any(sentence in written for sentence in tiny.SENTENCES)


@pytest.mark.parametrize(
    ("aucs", "recalls", "risk", "advice"),
    [
        ((0.99, 0.9, 0.55, 0.52), (0.5, 0.3, 0.04, 0.0), "HIGH", "set least.examples = 16"),
        ((0.99, 0.7, 0.7, 0.52), (0.0, 0.0, 0.0, 0.0), "MODERATE", "set least.examples = 64"),
        ((0.99, 0.55, 0.7, 0.52), (0.0, 0.0, 0.0, 0.0), "LOW", "little better than guessing there"),
        ((0.99, 0.55, 0.55, 0.52), (0.5, 0.3, 0.3, 0.3), "HIGH", "no limit on their number helps"),
    ],
)
def test_the_conclusion_names_the_risk_at_the_limit_and_the_limit_from_which_it_is_low(
    aucs: tuple[float, ...], recalls: tuple[float, ...], risk: str, advice: str
) -> None:
    sizes = (1, 4, 16, 64)
    member = [
        {"attacker": "outsider", "examples": size, "epsilon": epsilon, "auc": 0.5 if epsilon else auc}
        for epsilon in (None, 1.0)
        for size, auc in zip(sizes, aucs, strict=True)
    ]
    member.append({"attacker": "insider", "examples": 16, "epsilon": None, "auc": 1.0})
    words = [
        {"examples": size, "epsilon": None, "recall": recall + 0.1, "baseline": 0.1}
        for size, recall in zip(sizes, recalls, strict=True)
    ]
    first, second = conclusion({"membership": member, "words": words}, limit=8)
    assert f"with 4 examples behind a reply (the default limit is 8) the risk for a single text is {risk}" in first
    assert advice in second


def test_the_page_begins_with_the_conclusion(tables: dict[str, Any]) -> None:
    ending = conclusion(tables, limit=8)
    written = page("Audit of ward 3", {"examples": 35}, tables, ending)
    assert written.index("Conclusion:") < written.index("- With 1 example")
    assert "(50% is guessing)" in "".join(sentence for sentence in summary(tables) if "updates" in sentence)


def test_the_plot_has_a_curve_for_every_defence_the_limit_and_no_text(tables: dict[str, Any]) -> None:
    drawn = plot(tables, limit=8)
    for words in ("no noise", "ε = 1", "ε = 8", "the default limit, 8", "dashed: guessing"):
        assert f"{words}" in drawn
    assert not any(sentence in drawn for sentence in tiny.SENTENCES)
    assert drawn == plot(tables, limit=8)
    assert drawn != plot(tables, limit=16)


def test_an_audit_repeats(tables: dict[str, Any], backbone: Backbone) -> None:
    scorer, rows = Scorer(backbone, tiny.TASK), tiny.examples(70)
    evidence = Evidence.of(scorer, rows[:35], rows[35:], tiny.method(), updates=20)
    assert run_attacks(evidence, backbone, trials=100, seed=0, epsilons=(1.0, 8.0)) == tables


def test_the_noise_of_a_defence_is_what_the_accountant_asks_for() -> None:
    bare, noisy = budgets([1.0], ROWS)
    assert bare.is_none
    sums = np.stack([noisy.noisy_sum(noisy.clipped(ROWS), np.random.default_rng(seed)) for seed in range(200)])
    expected = noisy.multiplier * noisy.clip
    assert sums.std(axis=0).mean() == pytest.approx(expected, rel=0.05)


def _data(folder: Path, name: str, rows: range) -> Path:
    file = folder / name
    examples = tiny.examples(rows.stop)[rows.start :]
    file.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in examples))
    return file


def test_the_command_audits_a_data_file(tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, public = _data(tmp_path, "own.jsonl", range(30)), _data(tmp_path, "public.jsonl", range(30, 60))
    arguments = ["audit", str(own), "--public", str(public), "--model", str(llama_folder), "--trials", "100", "--updates", "12"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--json", "--out", str(tmp_path / "audit.md")])
    assert stop.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["facts"]["examples"] == 30
    written = (tmp_path / "audit.md").read_text()
    assert written.startswith("# Audit of own.jsonl")
    assert "(audit.svg)" in written
    assert (tmp_path / "audit.svg").read_text().rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.toml"], "no such file"),
        (["config.toml", "--client", "nobody"], "--client"),
        (["config.toml", "--model", "elsewhere"], "--model"),
        (["few.jsonl"], "allowed: 20 or more"),
    ],
)
def test_what_cannot_be_audited_is_refused_with_a_remedy(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    _data(tmp_path, "few.jsonl", range(6))
    config = (
        f'[task]\nname = "mood"\nlabels = ["good", "bad"]\n[model]\nsource = "{llama_folder}"\n'
        '[data]\nclients = { ward = "few.jsonl" }\n'
    )
    (tmp_path / "config.toml").write_text(config)
    extra = ["--model", str(llama_folder)] if arguments == ["few.jsonl"] else []
    with pytest.raises(SystemExit) as stop:
        cli.main(["audit", *arguments, *extra])
    assert stop.value.code in (2, 3)
    assert message in capsys.readouterr().err
