"""Every method, on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.losses import LABELS, Loss
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.methods import METHODS, affine, ridge
from ifedicl.bench.methods.base import Measured
from ifedicl.bench.methods.lora import lora_layers
from ifedicl.bench.methods.raw import with_demonstrations
from ifedicl.bench.setup import Setup
from ifedicl.data import Role, split_roles
from ifedicl.kinds.classify import Example
from ifedicl.kinds.examples import AnyEvaluation
from ifedicl.metrics import Evaluation
from tests.support import tiny
from tests.support.bench import TEST

# --- methods -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> dict[str, Measured]:
    """A run of each method that some test of this file has made; all do the same work."""
    return {}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_labels_every_test_row_and_leaves_the_model_as_it_was(
    setup: Setup, name: str, runs: dict[str, Measured]
) -> None:
    tokens = torch.arange(6).reshape(1, 6)
    before, modules = setup.backbone.hidden_states(tokens), [type(module) for module in setup.backbone.model.modules()]
    measured = runs[name] = METHODS[name].run(setup)
    for evaluation in measured.evaluations.values():
        assert evaluation.examples == TEST
        assert evaluation.labels == tiny.TASK.labels
    assert torch.equal(setup.backbone.hidden_states(tokens), before)
    assert [type(module) for module in setup.backbone.model.modules()] == modules
    assert not any(parameter.requires_grad for parameter in setup.backbone.model.parameters())
    assert measured.costs.test_seconds > 0


def _predicted(evaluation: AnyEvaluation) -> list[int]:
    assert isinstance(evaluation, Evaluation)
    predicted: list[int] = evaluation.predicted.tolist()
    return predicted


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_figures_twice(setup: Setup, name: str, runs: dict[str, Measured]) -> None:
    first = (runs.get(name) or METHODS[name].run(replace(setup))).evaluations
    second = METHODS[name].run(setup).evaluations
    assert [_predicted(evaluation) for evaluation in first.values()] == [
        _predicted(evaluation) for evaluation in second.values()
    ]


@pytest.mark.parametrize("name", ["ifed-icl", "ifed-icl-subspace", "i2cl-pooled", "client-alone", "fedavg-lora"])
def test_every_trained_method_gets_the_same_number_of_example_passes(
    setup: Setup, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def counted(scorer: Scorer, loss: Loss, prompts: Sequence[Any], labels: Sequence[int]) -> Tensor:
        trained.append(len(labels))
        return losses(scorer, loss, prompts, labels)

    losses = Scorer.losses
    monkeypatch.setattr(Scorer, "losses", counted)
    METHODS[name].run(replace(setup, choices={"learning_rate": 1e-3}))
    assert sum(trained) == 2 * 2 * 2 * 3


def test_other_methods_hold_out_the_same_examples_as_our_clients(setup: Setup) -> None:
    for client, examples in zip(setup.encoded_clients, setup.examples.values(), strict=True):
        roles = split_roles(examples, selection=0.15, gate=0.0, seed=0)
        assert len(client.train.labels) == len(roles[Role.TRAIN])
        assert client.selection.prompts == setup.scorer.encoder.prompts([row.text for row in roles[Role.SELECTION]])


def test_a_client_without_training_examples_keeps_the_raw_model_when_alone(setup: Setup) -> None:
    held_out = next(
        example for example in tiny.examples(200) if split_roles([example], selection=0.15, gate=0.0, seed=0)[Role.SELECTION]
    )
    with_poor = replace(setup, examples={**setup.examples, "d": (held_out,)})
    alone = METHODS["client-alone"].run(with_poor).evaluations["d"]
    assert _predicted(alone) == _predicted(METHODS["zero-shot"].run(setup).evaluations["all"])
    assert METHODS["fedavg-lora"].run(with_poor).evaluations


def test_demonstrations_are_balanced_and_end_in_their_label_words(setup: Setup) -> None:
    task, count = with_demonstrations(setup, setup.pool, "pooled")
    shown = task.template.removesuffix(setup.task.template).split("\n\n")[:-1]
    assert len(shown) == count
    assert 0 < count <= 16
    ends = [demonstration.rsplit(" ", 1)[1] for demonstration in shown]
    assert abs(ends.count("good") - ends.count("bad")) <= 1
    assert len(setup.backbone.tokenizer(task.template)["input_ids"]) <= setup.backbone.context_window // 2 + 20


@pytest.mark.parametrize("text", ["a {text} of its own", "kind <pad> words"], ids=["place of the text", "control token"])
def test_a_text_that_would_change_the_template_is_no_demonstration(setup: Setup, text: str) -> None:
    task, count = with_demonstrations(setup, [Example(text, "good"), Example("plain", "bad")], "x")
    assert count == 1
    assert "plain" in task.template


def test_lora_layers_are_gone_after_an_exception(backbone: Backbone) -> None:
    modules = [type(module) for module in backbone.model.modules()]
    with pytest.raises(RuntimeError, match="on purpose"), lora_layers(backbone):
        raise RuntimeError("on purpose")
    assert [type(module) for module in backbone.model.modules()] == modules


def test_lora_trains_its_layers_and_chooses_the_rate_with_the_lowest_held_out_loss(setup: Setup) -> None:
    searched = METHODS["fedavg-lora"].run(setup)
    assert searched.choices["learning_rate"] in searched.settings["rates"]
    best = min(point.loss for point in searched.curve)
    for rate in searched.settings["rates"]:
        other = METHODS["fedavg-lora"].run(replace(setup, choices={"learning_rate": rate}))
        assert min(point.loss for point in other.curve) >= best - 1e-6
    assert len({point.loss for point in searched.curve}) > 1, "weights that stay where they are would not be training"


def test_the_ridge_probe_is_ridge_regression_on_pooled_features(setup: Setup) -> None:
    parts = [client.train for client in setup.encoded_clients]
    features = np.concatenate([ridge._features(setup, part) for part in parts])
    target = np.eye(2)[[label for part in parts for label in part.labels]]
    solutions = ridge._solutions(features.T @ features, features.T @ target)
    unit = np.mean(np.sum(features[:, :-1] ** 2, axis=0))
    for strength, ours_ in zip(ridge._STRENGTHS, solutions, strict=True):
        penalty = np.sqrt(strength * unit) * np.eye(features.shape[1])
        penalty[-1, -1] = 0.0
        stacked = np.concatenate([features, penalty]), np.concatenate([target, np.zeros((features.shape[1], 2))])
        np.testing.assert_allclose(ours_, np.linalg.lstsq(*stacked, rcond=None)[0], rtol=1e-3, atol=1e-4)


def test_gradient_sums_of_the_affine_map_are_those_of_finite_differences() -> None:
    draw = np.random.default_rng(0)
    inputs, truth, weights = draw.normal(size=(7, 4)), (0, 2, 1, 1, 0, 2, 2), draw.normal(size=(3, 4))
    _, gradient = affine._sums(inputs, truth, weights)
    step = 1e-6
    for place in np.ndindex(*weights.shape):
        moved = weights.copy()
        moved[place] += step
        difference = (affine._sums(inputs, truth, moved)[0] - affine._sums(inputs, truth, weights)[0]) / step
        assert gradient[place] == pytest.approx(difference, abs=1e-4)


def test_the_affine_map_lowers_the_training_loss_of_zero_shot(setup: Setup) -> None:
    train = [(affine._inputs(setup, client.train), client.train.labels) for client in setup.encoded_clients]
    fit = affine._fit(setup, train, [], 1e-3)
    identity = np.eye(2, 3)
    before = sum(affine._sums(inputs, truth, identity)[0] for inputs, truth in train)
    after = sum(affine._sums(inputs, truth, fit.weights)[0] for inputs, truth in train)
    assert after < before


def test_lora_trains_in_float32_whatever_the_model_computes_in(tmp_path: Path) -> None:
    backbone = tiny.load(tiny.save_model(tmp_path / "m", "llama"), dtype="bfloat16")
    with lora_layers(backbone) as layers:
        assert {parameter.dtype for parameter in layers.parameters.values()} == {torch.float32}
        scorer = Scorer(backbone, tiny.TASK)
        scorer.losses(LABELS, scorer.encoder.prompts(["a fine day"]).tokens, [0]).sum().backward()
        assert any(parameter.grad is not None for parameter in layers.parameters.values())
