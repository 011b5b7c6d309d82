"""Choices: each option's words are scored behind one shared prompt, and a federation learns from sums over options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl import runs
from ifedicl.backbone.capture import Captures
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.losses import LABELS, WORDS
from ifedicl.backbone.option_scoring import OptionScorer
from ifedicl.calibrate import ClientRound, calibrate
from ifedicl.core.coefficients import Form, cold_start
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.errors import ConfigError, InputError, TaskError
from ifedicl.kinds.choices import Choice, Options
from ifedicl.settings import ModelSettings, RunSettings, changed, load_preset, validated
from tests.support import tiny
from tests.support.captured import Traced
from tests.support.choices import OPTIONS, TASK, choices

MODEL = ModelSettings(source="tiny", dtype="float32")


def log_of(backbone: Backbone, prompt: tuple[int, ...], word: tuple[int, ...]) -> float:
    """By a pass of the whole sequence."""
    logs = backbone.logits(backbone.hidden_states(torch.tensor([prompt + word]))).log_softmax(dim=-1)[0]
    return float(sum(logs[len(prompt) - 1 + step, token] for step, token in enumerate(word)))


@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize("normalises", [True, False])
@pytest.mark.parametrize("answer_by", ["option", "letter"])
def test_each_option_has_the_probability_of_its_sequence_behind_the_prompt(
    backbone: Backbone, branches: bool, normalises: bool, answer_by: Any
) -> None:
    task = TASK.model_copy(update={"normalise_length": normalises, "answer_by": answer_by})
    scorer = OptionScorer(backbone if branches else replace(backbone, branch_limit=0), task)
    encoded = scorer.encoded(choices(7))
    found, first = scorer.scores(encoded), 0
    for prompt, own in zip(encoded.prompts.tokens, encoded.labels, strict=True):
        expected = np.array([log_of(backbone, prompt, word) / (len(word) if normalises else 1) for word in own.words])
        part = found[first : first + len(own.words)]
        np.testing.assert_allclose(part[:, 1] - part[:, 0], expected - expected.mean(), atol=1e-4)
        first += len(own.words)
    assert first == len(found)


@pytest.mark.parametrize("branches", [True, False])
def test_the_losses_are_those_of_the_scores_and_of_the_right_option_alone(backbone: Backbone, branches: bool) -> None:
    scorer = OptionScorer(backbone if branches else replace(backbone, branch_limit=0), TASK)
    encoded = scorer.encoded(choices(7))
    logs, _ = TASK.tally(scorer.scores(encoded), encoded.labels), None
    prompts, labels = encoded.prompts.tokens, encoded.labels
    total = 0.0
    for batch in scorer.training_batches(prompts, labels):
        part = [prompts[row] for row in batch], [labels[row] for row in batch]
        total += float(scorer.losses(LABELS, *part).sum())
        words = scorer.losses(WORDS, *part)
        alone = [
            -log_of(backbone, prompt, own.words[own.which]) / len(own.words[own.which])
            for prompt, own in zip(*part, strict=True)
        ]
        np.testing.assert_allclose(words.detach().numpy(), alone, atol=1e-4)
    assert total == pytest.approx(logs.loss_sum, abs=1e-3)


def test_letters_stand_for_the_options_that_the_prompt_shows(backbone: Backbone) -> None:
    task = TASK.model_copy(update={"answer_by": "letter"})
    scorer = OptionScorer(backbone, task)
    encoded = scorer.encoded(choices(2))
    shown = backbone.tokenizer.decode(list(encoded.prompts.tokens[1]))
    assert shown.endswith("\nA. good\nB. bad\nPlace:")
    assert [backbone.tokenizer.decode(list(word)) for word in encoded.labels[1].words] == [" A", " B"]


def test_a_long_text_is_cut_and_its_options_are_not(backbone: Backbone) -> None:
    task = TASK.model_copy(update={"answer_by": "letter"})
    encoded = OptionScorer(backbone, task).encoded([replace(choices(2)[1], text="cold soup " * 200)])
    assert encoded.prompts.truncated == 1
    assert len(encoded.prompts.tokens[0]) <= backbone.context_window - 1
    assert backbone.tokenizer.decode(list(encoded.prompts.tokens[0])).endswith("A. good\nB. bad\nPlace:")


@pytest.mark.parametrize("first_layer", [0, 2])
@pytest.mark.parametrize("branches", [True, False])
def test_a_row_of_a_reading_is_an_option_less_the_mean_of_its_example(
    llama_folder: Path, branches: bool, first_layer: int
) -> None:
    backbone = tiny.load(llama_folder)  # of its own: a model that was once asked for its hidden states keeps hooks
    model = backbone if branches else replace(backbone, branch_limit=0)
    encoded = OptionScorer(model, TASK).encoded(choices(5))
    reading = OptionScorer(model, TASK, first_layer=first_layer).reading(encoded, (1, 3))
    expected = []
    for prompt, own in zip(encoded.prompts.tokens, encoded.labels, strict=True):
        rows = []
        for word in own.words:
            output = backbone.model(torch.tensor([prompt + word]), output_hidden_states=True)
            last = backbone.hidden_states(torch.tensor([prompt + word]))[0, -1]
            first = output.hidden_states[1][0, len(prompt) :].mean(dim=0)
            rows.append(torch.cat([last, first]).detach().numpy())
        expected += [row - np.mean(rows, axis=0) for row in rows]
    width = backbone.width
    np.testing.assert_allclose(reading.states[:, : 2 * width], np.array(expected), atol=1e-4)
    alone = OptionScorer(model, TASK).reading(encoded, (1, 3), alone=True)
    np.testing.assert_allclose(reading.states, alone.states, atol=1e-4)


def test_a_readout_chooses_by_a_linear_function_of_the_options(backbone: Backbone) -> None:
    scorer = OptionScorer(backbone, TASK)
    encoded = scorer.encoded(choices(6))
    weights = np.random.default_rng(0).normal(size=(2, backbone.width + 3)).astype(np.float32)
    scores = scorer.scores(encoded, readout=Readout(weights))
    states, logs = scorer.reading(encoded).states, scorer.reading(encoded).logs
    margins = states @ (weights[1] - weights[0])[:-3] + logs @ (weights[1] - weights[0])[-3:-1] + (weights[1] - weights[0])[-1]
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], margins, rtol=1e-4, atol=1e-4)


def test_figures_count_chosen_options() -> None:
    labels = [options_of(2, 1), options_of(3, 0)]
    scores = np.zeros((5, 2), dtype=np.float32)
    scores[:, 1] = [0.0, 1.0, 0.5, 2.0, 0.0]
    tally, evaluation = TASK.tally(scores, labels), TASK.evaluation(scores, labels)
    assert (tally.examples, tally.correct) == (2, 1)
    assert evaluation.hits.tolist() == [1.0, 0.0]
    assert evaluation.figures["by chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    losses = [np.log(1 + np.exp(-1.0)), np.log(1 + np.exp(1.5) + np.exp(-0.5))]
    assert evaluation.loss == pytest.approx(np.mean(losses), abs=1e-6)
    compared = TASK.comparison(scores, np.zeros((5, 2), dtype=np.float32), labels)
    assert compared.truth[:2] == (1, 1)
    assert sum(compared.answers) == 2


def options_of(options: int, which: int) -> Any:
    return Options(((1,),) * options, which, 0)


@pytest.mark.parametrize("preset", ["subspace", "one-shot", "paper"])
def test_a_federation_learns_from_choices(backbone: Backbone, preset: str) -> None:
    sections = {"holdout": {"selection": 0.3, "gate": 0.2}} | (
        {} if preset == "one-shot" else {"rounds": {"rounds": 2}, "calibration": {"local_steps": 1, "batch_size": 3}}
    )
    method = changed(load_preset(preset), sections, "a test")
    hands = {name: choices(24, seed=seed) for seed, name in enumerate(("north", "south"))}
    results = []
    for _ in range(2):
        clients = runs.simulate(backbone, TASK, hands)
        results.append(runs.federate(clients, MODEL, TASK, method))
    first, second = (result.adapter for result in results)
    assert first.context.digest == second.context.digest
    evaluation = first.on_model(backbone).evaluate(choices(9, seed=3))
    assert evaluation.examples == 9
    assert evaluation.summary() == second.on_model(backbone).evaluate(choices(9, seed=3)).summary()
    answers = first.on_model(backbone).answers(choices(3))
    assert [answer.shown for answer in answers] == [OPTIONS[row][answer.value] for row, answer in enumerate(answers)]


def test_private_mode_is_refused_and_labels_are_asked_of_classifications_only(backbone: Backbone) -> None:
    adapter = runs.zero_shot_adapter(backbone, MODEL, TASK)
    with pytest.raises(TaskError, match=r"task\.kind: received 'choose'; allowed for Adapter\.classifier: 'classify'"):
        adapter.classifier(backbone)
    with pytest.raises(InputError, match="received Example as number 1; allowed: Choice"):
        adapter.on_model(backbone).evaluate(tiny.examples(1))
    privacy = {"mode": "private", "min_survivors": 4, "colluders": 1, "noise": {"epsilon": 4.0}}
    values = {
        "weighting": "examples",
        "server": {"update": "gradient"},
        "rounds": {"select_by": "accuracy"},
        "task": {"kind": "choose", "name": "x"},
        "model": {"source": "m"},
        "data": {"train": "t", "public": "p", "split": {"clients": 4}},
        "privacy": privacy,
    }
    with pytest.raises(ConfigError, match=r'task\.kind "choose" has no sums with noise'):
        validated(RunSettings, values, "a test")


@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
def test_a_captured_step_of_choices_gives_the_plain_numbers(backbone: Backbone, loss: str) -> None:
    record = Traced()
    method = tiny.method(calibration={"batch_size": 3, "local_steps": 8, "learning_rate": 0.01, "loss": loss})
    rows = [Choice("the soup was warm", OPTIONS[0], number % 3) for number in range(9)]
    vectors = np.random.default_rng(0).normal(size=(backbone.layers, 2, backbone.width)).astype(np.float32)
    start, turn = cold_start(Form(backbone.layers), method.injection), ClientRound("clinic", 0, 0, 1)
    updates = []
    for model in (backbone, replace(backbone, captures=Captures(record))):
        scorer = OptionScorer(model, TASK)
        updates.append(calibrate(scorer, scorer.encoded(rows), Context(vectors), start, method, turn))
    assert record.replayed > 0
    np.testing.assert_allclose(updates[0].coefficients.scales, updates[1].coefficients.scales, atol=2e-5)
    assert updates[0].loss == pytest.approx(updates[1].loss, rel=1e-5)
