"""The text's mean state on its way, against the model's own hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl.backbone import hooks
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import Tokens
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.kinds.classify import Task
from tests.support import tiny
from tests.support.private import private_method

TEXTS = [example.text for example in tiny.examples(9)]


@pytest.fixture
def backbone(llama_folder: Path) -> Backbone:
    """A copy of its own: a model that was once asked for its hidden states keeps hooks."""
    return tiny.load(llama_folder)


def expected(backbone: Backbone, scorer: Scorer, prompts: Sequence[Tokens], layer: int) -> np.ndarray:
    """One at a time, by what the library itself calls hidden states."""
    rows = []
    for prompt in prompts:
        with torch.no_grad():
            output = backbone.model.base_model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
        span = scorer.encoder.text_span(prompt)
        rows.append(output.hidden_states[layer][0, span.start : span.stop].mean(dim=0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("task", [tiny.TASK, tiny.MANY_TOKENS], ids=["one token", "several"])
def test_the_mean_state_is_that_of_the_text_alone(backbone: Backbone, task: Task) -> None:
    scorer = Scorer(backbone, task)
    prompts = scorer.encoder.prompts(TEXTS)
    states = scorer.read(prompts, (1,)).states[:, backbone.width :]
    np.testing.assert_allclose(states, expected(backbone, scorer, prompts.tokens, 1), rtol=1e-4, atol=1e-5)


def test_it_is_the_same_behind_a_beginning_that_is_run_once(backbone: Backbone) -> None:
    long = Task(name="long", labels=tiny.TASK.labels, template="as it was, or so they say: " * 2 + "Text: {text}\nLabel:")
    scorer = Scorer(backbone, long)
    prompts = scorer.encoder.prompts(TEXTS)
    states = scorer.read(prompts, (1,)).states[:, backbone.width :]
    np.testing.assert_allclose(states, expected(backbone, scorer, prompts.tokens, 1), rtol=1e-3, atol=1e-4)


def test_several_layers_are_read_in_one_pass(backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    prompts = scorer.encoder.prompts(TEXTS)
    together = scorer.read(prompts, (1, 2)).states
    alone = [scorer.read(prompts, (layer,)).states[:, backbone.width :] for layer in (1, 2)]
    assert np.abs(alone[0] - alone[1]).max() > 1e-2
    np.testing.assert_array_equal(together[:, backbone.width :], np.concatenate(alone, axis=1))


@pytest.mark.parametrize(("first", "layers"), [(1, (1,)), (2, (1,)), (2, (1, 2)), (1, (1, 2))])
def test_it_is_the_same_on_kept_states_of_the_lower_layers(backbone: Backbone, first: int, layers: tuple[int, ...]) -> None:
    whole, upper = Scorer(backbone, tiny.TASK), Scorer(backbone, tiny.TASK, first_layer=first)
    prompts = whole.encoder.prompts(TEXTS)
    expected = whole.read(prompts, layers)
    for again in (upper.read(prompts, layers), upper.read(prompts, layers)):  # computed, then kept
        np.testing.assert_allclose(again.states, expected.states, rtol=1e-4, atol=1e-5)


def test_an_injection_changes_what_enters_the_layers_above_it(backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    prompts = scorer.encoder.prompts(TEXTS)
    raw = scorer.read(prompts, (backbone.layers,)).states
    context = Context(np.ones((backbone.layers, 2, backbone.width), "f4"))
    with hooks.applied(backbone, context, Coefficients(np.full((backbone.layers, 2, 2), 0.9, "f4"))):
        changed = scorer.read(prompts, (backbone.layers,)).states
    assert np.abs(changed - raw)[:, backbone.width :].max() > 1e-2


@pytest.mark.parametrize("template", ["Text: {text}\nLabel:", "{text}\nLabel:", "{text}"])
def test_the_span_holds_the_text_and_nothing_of_the_template(backbone: Backbone, template: str) -> None:
    if template == "{text}":
        template = "{text} is"
    encoder = Scorer(backbone, Task(name="t", labels=tiny.TASK.labels, template=template)).encoder
    for text in TEXTS:
        (prompt,) = encoder.prompts([text]).tokens
        span = encoder.text_span(prompt)
        assert 0 < span.start < span.stop <= len(prompt)
        inside = backbone.tokenizer.decode(prompt[span.start : span.stop])
        assert "Label" not in inside
        assert inside.strip() in text or text.strip() in inside


@pytest.mark.parametrize(
    ("sections", "layers"),
    [
        ({"readout": {}}, (6, 15, 24)),
        ({"readout": {"pooled_depths": [1.0, 0.5, 0.01, 0.012]}}, (1, 15, 30)),
        ({"readout": {"pooled_depths": []}}, ()),
        ({"readout": {}, "injection": {"from_depth": 0.5}}, (6, 15, 24)),
        ({}, ()),
    ],
)
def test_layers_are_distinct_and_from_low_to_high(sections: dict[str, Any], layers: tuple[int, ...]) -> None:
    assert tiny.method(**sections).pooled_layers(30) == layers


def test_with_noise_one_depth_is_read_unless_more_are_asked_for() -> None:
    gate = {"selection": 0.0, "gate": 0.2}
    assert private_method(readout={}, holdout=gate).pooled_layers(30) == (15,)
    assert private_method(readout={"pooled_depths": [0.2, 0.4]}, holdout=gate).pooled_layers(30) == (6, 12)
