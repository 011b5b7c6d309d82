"""More labels than a readout reads the words of: the text alone is run, in training and for answers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from ifedicl.backbone.layout import Row
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import Tokens
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.blend import blended, shares
from ifedicl.core.readout import Readout
from ifedicl.federation.coordinator import Coordinator
from ifedicl.kinds.classify import Example, Task
from ifedicl.settings.method import MANY_LABELS
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.local_runs import real, shape_of

COUNT = MANY_LABELS + 8
LABELS = tuple(
    f"{first} {second}"
    for first in ["a", "b", "c", "d", "e", "f", "g", "h"]
    for second in ["kind", "cold", "late", "wet", "warm"]
)[:COUNT]
TASK = Task(name="many", labels=LABELS, template="Text: {text}\nMood:", separator=" ")
METHOD = partial(tiny.method, weighting="examples", rounds={"rounds": 0}, readout={}, calibration={})
HANDS = {
    name: tuple(Example(f"{label} text {name} {number}", label) for label in LABELS for number in range(3))
    for name in ("a", "b")
}


@pytest.fixture
def run_rows(monkeypatch: pytest.MonkeyPatch) -> list[Tokens]:
    """The tokens of each row that is run."""
    rows, states = list[Tokens](), Scorer.states

    def noted(scorer: Scorer, given: list[Row], prefix: None) -> object:
        rows.extend(row.tokens for row in given)
        return states(scorer, given, prefix)

    monkeypatch.setattr(Scorer, "states", noted)
    return rows


def test_training_runs_the_texts_alone_and_held_out_examples_compare_with_the_words(
    backbone: Backbone, run_rows: list[Tokens]
) -> None:
    outcome = Coordinator(engine_of(real(backbone, HANDS)), TASK, METHOD(), shape_of(backbone)).run()
    prompts = set(Scorer(backbone, TASK).encoder.prompts([row.text for rows in HANDS.values() for row in rows]).tokens)
    bare = [tokens for tokens in run_rows if tokens in prompts]
    held_out = len(run_rows) - len(bare)
    assert outcome.state.zero_shot is not None
    assert held_out >= outcome.state.zero_shot.examples > 0
    assert len(bare) == sum(map(len, HANDS.values())) - outcome.state.zero_shot.examples


def test_answers_of_a_readout_that_reads_no_word_run_no_word(backbone: Backbone, run_rows: list[Tokens]) -> None:
    scorer = Scorer(backbone, TASK)
    prompts = scorer.encoder.prompts(["fresh bread", "a cold room"])
    weights = np.random.default_rng(1).normal(size=(COUNT, backbone.width + COUNT + 1)).astype(np.float32)
    with_words = Readout(weights.copy())
    weights[:, backbone.width : -1] = 0
    without = Readout(weights)
    assert (with_words.reads_words, without.reads_words) == (True, False)
    logs = scorer.log_probabilities(prompts, readout=without)
    assert set(run_rows) == set(prompts.tokens)
    reading = scorer.read(prompts)
    np.testing.assert_allclose(logs, without.log_probabilities(reading.states, reading.logs), atol=1e-5)
    assert len(run_rows) > 2 * len(prompts.tokens) or max(map(len, run_rows)) > max(map(len, prompts.tokens))


def test_a_reading_without_words_has_the_states_of_one_with_them(backbone: Backbone) -> None:
    scorer = Scorer(backbone, TASK)
    prompts = scorer.encoder.prompts([row.text for row in HANDS["a"][:20]])
    with_words, without = scorer.read(prompts, (1,)), scorer.read(prompts, (1,), words=False)
    np.testing.assert_allclose(without.states, with_words.states, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(without.logs, -np.log(COUNT), rtol=1e-6)


def test_few_labels_are_read_as_before() -> None:
    method = METHOD()
    assert method.reads_words(MANY_LABELS)
    assert not method.reads_words(MANY_LABELS + 1)
    assert shares(False) == (0.0,)


def test_words_that_matter_nothing_leave_no_weight() -> None:
    weights = np.zeros((3, 9), dtype=np.float32)
    weights[:, 0] = 1, 2, 3
    readout = Readout(weights)
    far = blended([readout], [50.0, *[0.0] * 5], shares(False))
    near = blended([readout], [5.0, *[0.0] * 5], shares(False))
    assert far is not None
    assert near is not None
    assert (far.reads_words, near.reads_words) == (False, True)
