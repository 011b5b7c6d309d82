"""Choices on the real model: options in one row score as whole sequences do, and a federation's sums choose better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ifedicl import Backbone, Choice, ChooseTask, ModelSettings, load_preset, runs
from ifedicl.backbone.option_scoring import OptionScorer
from ifedicl.demo.fetch import demo_places
from ifedicl.serve.asked.asked_choices import ANSWER_EXAMPLE, QUESTIONS_EXAMPLE
from ifedicl.settings import changed
from tests.support.serve import served

pytestmark = pytest.mark.real
TASK = ChooseTask(name="who is pleased", template="Review: {text}\nThe guest")
PLEASED = ("was very happy with it", "praised it to everyone", "will gladly come again")
ANGRY = ("was angry and wants the money back", "complained about it", "will never come again")


def choices(count: int, first: int = 0) -> tuple[Choice, ...]:
    """Sentences of the demo, each with one ending of either mood, in either order."""
    rows = [row for place in demo_places(pool=60, test=3, seed=0).values() for row in place.pool if row.label != "neutral"]
    found = []
    for number, row in enumerate(rows[first : first + count]):
        pair = PLEASED[number % 3], ANGRY[(number // 3) % 3]
        right = int(row.label == "negative")
        swapped = number % 2
        found.append(Choice(row.text, pair[::-1] if swapped else pair, right ^ swapped))
    return tuple(found)


def test_options_in_one_row_score_as_one_sequence_each(real_backbone: Backbone) -> None:
    scorer, apart = OptionScorer(real_backbone, TASK), OptionScorer(replace(real_backbone, branch_limit=0), TASK)
    encoded = scorer.encoded(choices(12))
    np.testing.assert_allclose(scorer.scores(encoded), apart.scores(encoded), atol=2e-3)
    ours, theirs = (each.reading(encoded, (15,)) for each in (scorer, apart))
    np.testing.assert_allclose(ours.states, theirs.states, atol=2e-2)


def test_one_message_of_each_client_chooses_better_than_the_raw_model_and_is_served(
    real_backbone: Backbone, tmp_path: Path
) -> None:
    rows, test = choices(80), choices(40, first=80)
    method = changed(load_preset("one-shot"), {"holdout": {"selection": 0.25}}, "a test")
    clients = runs.simulate(real_backbone, TASK, {"north": rows[::2], "south": rows[1::2]})
    model = ModelSettings(source="demo", dtype="float32")
    adapter = runs.federate(clients, model, TASK, method).adapter
    raw = runs.zero_shot_adapter(real_backbone, model, TASK).on_model(real_backbone).evaluate(test)
    ours = adapter.on_model(real_backbone).evaluate(test)
    assert ours.loss < raw.loss
    assert ours.accuracy >= raw.accuracy
    answers = adapter.on_model(real_backbone).answers(test[:3])
    assert [answer.shown in row.options for answer, row in zip(answers, test[:3], strict=True)] == [True] * 3

    questions = [{"text": row.text, "options": row.options} for row in test[:3]]
    *results, shown = served(adapter, real_backbone, tmp_path, {"questions": questions + QUESTIONS_EXAMPLE})["results"]
    assert shown["option"] == ANSWER_EXAMPLE["results"][0]["option"]  # on /docs
    assert [item["option"] for item in results] == [answer.shown for answer in answers]
    for item, answer in zip(results, answers, strict=True):
        assert item["probabilities"] == pytest.approx(answer.facts["probabilities"], abs=2e-3)
