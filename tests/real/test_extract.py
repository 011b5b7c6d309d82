"""Answers of text on the real model: what it writes with an injection, and a federation that learns a form of answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ifedicl import Backbone, ExtractTask, ModelSettings, Passage, TextEvaluation, load_preset, runs
from ifedicl.backbone.answer_scoring import AnswerScorer
from ifedicl.backbone.hooks import applied
from ifedicl.serve.asked.asked_passages import ROUTE
from ifedicl.settings import changed
from tests.support.serve import served

pytestmark = pytest.mark.real
TASK = ExtractTask(name="order", template="Order: {text}\nFields:", most_answer_tokens=16)
THINGS = ("tea", "soup", "bread", "salad", "rice", "coffee", "cake", "fish")
PLACES = ("kitchen", "garden", "office", "hall", "cellar", "library")
METHOD = {
    "readout": False,
    "holdout": {"selection": 0.2},
    "injection": {"from_depth": 0.0},
    "calibration": {"batch_size": 6, "local_steps": 4},
    "rounds": {"rounds": 3, "evaluate_every": 3},
}


def passages(count: int, first: int = 0) -> tuple[Passage, ...]:
    """Made-up orders, each with its two fields."""
    pairs = [(thing, place) for thing in THINGS for place in PLACES]
    order = np.random.default_rng(0).permutation(len(pairs))[first : first + count]
    return tuple(
        Passage(f"please bring the {pairs[number][0]} to the {pairs[number][1]}", "item: {}; to: {}".format(*pairs[number]))
        for number in order
    )


def test_a_federation_learns_to_write_fields_and_writes_what_plain_passes_write(
    real_backbone: Backbone, tmp_path: Path
) -> None:
    rows, test = passages(36), passages(12, first=36)
    clients = runs.simulate(real_backbone, TASK, {"north": rows[::2], "south": rows[1::2]})
    model = ModelSettings(source="demo", dtype="float32")
    adapter = runs.federate(clients, model, TASK, changed(load_preset("subspace"), METHOD, "a test")).adapter
    raw = runs.zero_shot_adapter(real_backbone, model, TASK).on_model(real_backbone).evaluate(test)
    ours = adapter.on_model(real_backbone).evaluate(test)
    assert isinstance(raw, TextEvaluation)
    assert isinstance(ours, TextEvaluation)
    assert ours.loss < raw.loss / 2
    assert ours.figures["slot F1"] > raw.figures["slot F1"]

    scorer = AnswerScorer(real_backbone, TASK)
    examples = scorer.encoded(test[:2])
    with applied(real_backbone, adapter.context, adapter.coefficients), torch.no_grad():
        for prompt, written in zip(examples.prompts.tokens, ours.predicted, strict=False):
            tokens = list(prompt)
            while len(tokens) < len(prompt) + TASK.most_answer_tokens + 1 and not (
                len(tokens) > len(prompt) and scorer.ends.ends_at(tokens[-1])
            ):
                states = real_backbone.hidden_states(torch.tensor([tokens]))
                tokens.append(int(real_backbone.logits(states[0, -1]).argmax()))
            assert scorer.ends.text(tokens[len(prompt) :]) == written

    answer = served(adapter, real_backbone, tmp_path, ROUTE.example)
    assert answer["results"][0]["answer"] == ROUTE.answer_example["results"][0]["answer"]  # on /docs
