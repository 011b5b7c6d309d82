"""The text's mean state on its way, against the model's own hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl.backbone import hooks
from ifedicl.backbone.encoding import Tokens
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.settings import ReadoutSettings
from ifedicl.task import Task
from tests.support import tiny

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
    states = scorer.read(prompts, 1).states[:, backbone.width :]
    np.testing.assert_allclose(states, expected(backbone, scorer, prompts.tokens, 1), rtol=1e-4, atol=1e-5)


def test_it_is_the_same_behind_a_beginning_that_is_run_once(backbone: Backbone) -> None:
    long = Task(name="long", labels=tiny.TASK.labels, template="as it was, or so they say: " * 2 + "Text: {text}\nLabel:")
    scorer = Scorer(backbone, long)
    prompts = scorer.encoder.prompts(TEXTS)
    states = scorer.read(prompts, 1).states[:, backbone.width :]
    np.testing.assert_allclose(states, expected(backbone, scorer, prompts.tokens, 1), rtol=1e-3, atol=1e-4)


def test_it_is_the_same_on_kept_states_of_the_lower_layers(backbone: Backbone) -> None:
    whole, upper = Scorer(backbone, tiny.TASK), Scorer(backbone, tiny.TASK, first_layer=1)
    prompts = whole.encoder.prompts(TEXTS)
    first = whole.read(prompts, 1)
    for again in (upper.read(prompts, 1), upper.read(prompts, 1)):  # computed, then kept
        np.testing.assert_allclose(again.states, first.states, rtol=1e-4, atol=1e-5)


def test_an_injection_changes_what_enters_the_layers_above_it(backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    prompts = scorer.encoder.prompts(TEXTS)
    raw = scorer.read(prompts, backbone.layers).states
    context = Context(np.ones((backbone.layers, 2, backbone.width), "f4"))
    with hooks.applied(backbone, context, Coefficients(np.full((backbone.layers, 2, 2), 0.9, "f4"))):
        changed = scorer.read(prompts, backbone.layers).states
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
    ("depth", "from_depth", "layer"), [(0.5, 0.0, 15), (0.0, 0.0, None), (1.0, 0.0, 30), (0.01, 0.0, 1), (0.5, 0.67, 20)]
)
def test_the_layer_is_never_below_those_that_are_kept(depth: float, from_depth: float, layer: int | None) -> None:
    changed: dict[str, Any] = {"readout": {"pooled_depth": depth}, "injection": {"from_depth": from_depth}}
    assert tiny.method(**changed).pooled_layer(30) == layer


def test_without_a_readout_nothing_is_pooled() -> None:
    assert tiny.method().pooled_layer(30) is None
    assert ReadoutSettings().pooled_depth == 0.5
