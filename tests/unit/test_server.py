"""The server's own optimizers, and rounds that do not depend on who holds which example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl import settings
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import drawn, gradient_sum
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form, cold_start
from ifedicl.core.server_optimizer import Moments, stepped
from ifedicl.core.subspace import Context
from ifedicl.data import Role, split_roles
from ifedicl.errors import ConfigError
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.messages import Failure, FailureCode, GradientReply, GradientRequest, Reply, Request
from ifedicl.federation.reply_sums import Total
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.engines import RecordingEngine
from tests.support.local_runs import HANDS, Hands, assert_same_result, failures, real, run_real, shape_of
from tests.support.stopping import StopError, stop_after

FORM = Form(3, 2)
POOL = tuple(example for own in HANDS.values() for example in own)
OTHER: Hands = {"x": POOL[::2], "y": POOL[1::2]}


def _gradient_method(rounds: int = 4, **sections: Any) -> settings.Method:
    """Vectors weighted by examples: with them, nothing in a run depends on the split."""
    server = {"update": "gradient", "learning_rate": 0.05, "draw": 0.5, **sections.pop("server", {})}
    return tiny.method(server=server, weighting="examples", rounds={"rounds": rounds, "select_by": "last"}, **sections)


def _draw(seed: int) -> Coefficients:
    draws = np.random.default_rng(seed)
    return Coefficients.of({name: draws.normal(size=shape).astype(np.float32) for name, shape in FORM.shapes.items()})


@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        ("momentum", lambda leaves: torch.optim.SGD(leaves, 0.1, momentum=0.9)),
        ("adam", lambda leaves: torch.optim.AdamW(leaves, 0.1, betas=(0.9, 0.99), weight_decay=0.01)),
    ],
)
def test_optimizers_take_the_steps_of_the_library(optimizer: Any, reference: Any) -> None:
    coefficients, moments = _draw(0), Moments.none(_draw(0))
    identity = Coefficients.identity(FORM).arrays
    leaves = {name: torch.from_numpy(array - identity[name]) for name, array in coefficients.arrays.items()}
    library = reference(list(leaves.values()))
    decay = 0.01 if optimizer == "adam" else 0.0
    for step in range(5):
        direction = _draw(step + 1).arrays
        coefficients, moments = stepped(coefficients, direction, moments, optimizer, rate=0.1, momentum=0.9, decay=decay)
        for name, leaf in leaves.items():
            leaf.grad = torch.from_numpy(direction[name])
        library.step()
    assert moments.steps == 5
    for name, array in coefficients.arrays.items():
        np.testing.assert_allclose(array, leaves[name].numpy() + identity[name], rtol=1e-4, atol=1e-5)


def test_a_first_step_of_rate_one_is_plain_averaging(backbone: Backbone) -> None:
    server = {"optimizer": "momentum", "learning_rate": 1.0}
    plain, served = (run_real(backbone, tiny.method(rounds={"rounds": 1}, **more)) for more in ({}, {"server": server}))
    for name, array in plain.state.coefficients.arrays.items():
        np.testing.assert_allclose(served.state.coefficients.arrays[name], array, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_momentum_on_the_clients_changes_goes_another_way(backbone: Backbone, optimizer: str) -> None:
    plain = run_real(backbone, tiny.method(rounds={"rounds": 3}))
    served = run_real(backbone, tiny.method(rounds={"rounds": 3}, server={"optimizer": optimizer, "learning_rate": 0.5}))
    assert np.abs(plain.state.coefficients.scales - served.state.coefficients.scales).max() > 1e-4
    assert served.state.moments is not None
    assert plain.state.moments is None


def _sums(backbone: Backbone, hands: Hands, method: settings.Method, round_number: int) -> GradientSum:
    """Of all clients' training examples that a round draws."""
    scorer, total = Scorer(backbone, tiny.TASK), Total(GradientReply)
    vectors = np.random.default_rng(0).normal(size=(backbone.layers, 2, backbone.width)).astype(np.float32)
    start = cold_start(Form(backbone.layers), settings.InjectionSettings(context_scale=0.1))
    for own in hands.values():
        rows = split_roles(own, selection=method.holdout.selection, gate=0.0, seed=method.seed)[Role.TRAIN]
        taking_part = drawn([row.key for row in rows], round_number, method)
        total.add(GradientReply(gradient_sum(scorer, scorer.encoded(rows), Context(vectors), start, method, taking_part)))
    assert total.reply is not None
    return total.reply.sums


def test_two_splits_of_one_pool_give_the_same_gradient_sums(backbone: Backbone) -> None:
    method = _gradient_method()
    for round_number in range(4):
        first, second = (_sums(backbone, hands, method, round_number) for hands in (HANDS, OTHER))
        assert first.examples == second.examples
        np.testing.assert_allclose(first.loss, second.loss, rtol=1e-5)
        for name, array in first.arrays.items():
            np.testing.assert_allclose(array, second.arrays[name], rtol=1e-4, atol=1e-6)


def test_after_ten_rounds_two_splits_of_one_pool_label_alike(backbone: Backbone) -> None:
    method = _gradient_method(rounds=10, subspace={"rank": 4})
    scorer = Scorer(backbone, tiny.TASK)
    prompts = scorer.encoder.prompts([example.text for example in tiny.examples(12, seed=77)])
    logs = []
    for hands in (HANDS, OTHER):
        outcome = run_real(backbone, method, hands)
        assert outcome.chosen_round == 10
        with applied(backbone, outcome.context, outcome.coefficients):
            logs.append(scorer.log_probabilities(prompts))
    np.testing.assert_allclose(logs[0], logs[1], atol=1e-3)
    assert np.abs(logs[0] - scorer.log_probabilities(prompts)).max() > 1e-2


def test_different_rounds_draw_different_examples_of_about_the_fraction() -> None:
    method, keys = _gradient_method(server={"draw": 0.25}), [f"key {number}" for number in range(2_000)]
    first, second = (set(drawn(keys, number, method)) for number in range(2))
    assert len(first) == pytest.approx(500, abs=80)
    assert len(first & second) == pytest.approx(125, abs=50)


def test_the_loss_falls_and_the_run_repeats(backbone: Backbone) -> None:
    method = _gradient_method(server={"draw": 1.0})
    outcome = run_real(backbone, method)
    losses = [record.train_loss for record in outcome.state.history]
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0]
    assert_same_result(outcome, run_real(backbone, method))


def test_a_run_that_is_stopped_goes_on_with_the_same_moments(backbone: Backbone, tmp_path: Path) -> None:
    method, file = _gradient_method(), tmp_path / "checkpoint"
    whole = run_real(backbone, method)

    with pytest.raises(StopError):
        Coordinator(
            engine_of(real(backbone)), tiny.TASK, method, shape_of(backbone), checkpoint_file=file, observer=stop_after(2)
        ).run()
    resumed = run_real(backbone, method, checkpoint=file, resume=True)
    assert_same_result(whole, resumed)
    assert resumed.state.moments is not None
    assert resumed.state.moments.steps == 4


def test_a_client_that_is_away_only_leaves_its_examples_out(backbone: Backbone) -> None:
    def away(name: str, request: Request, reply: Reply) -> Reply:
        return Failure(FailureCode.LATE) if name == "b" and isinstance(request, GradientRequest) else reply

    outcome: Outcome = run_real(backbone, _gradient_method(), engine=RecordingEngine(engine_of(real(backbone)), away))
    assert {name for name, _, _ in failures(outcome)} == {"b"}
    assert outcome.state.history[-1].clients == ("a", "c")


@pytest.mark.parametrize(
    "bad",
    [
        lambda sums: GradientSum({name: array * np.nan for name, array in sums.arrays.items()}, sums.examples, sums.loss),
        lambda sums: GradientSum({"scales": sums.arrays["scales"][:1]}, sums.examples, sums.loss),
        lambda sums: GradientSum(sums.arrays, -1, sums.loss),
        lambda sums: GradientSum(sums.arrays, 1, -5.0),
    ],
)
def test_a_gradient_that_makes_no_sense_is_left_out(backbone: Backbone, bad: Any) -> None:
    def lie(name: str, request: Request, reply: Reply) -> Reply:
        return GradientReply(bad(reply.sums)) if name == "b" and isinstance(reply, GradientReply) else reply

    outcome = run_real(backbone, _gradient_method(), engine=RecordingEngine(engine_of(real(backbone)), lie))
    assert {(name, code) for name, _, code in failures(outcome)} == {("b", "bad_reply")}


def test_a_client_gives_no_gradient_to_a_run_that_asks_for_updates(backbone: Backbone) -> None:
    method = tiny.method()
    client = real(backbone)[0]
    run_real(backbone, method, engine=engine_of([client]))
    assert client._context is not None
    reply = client.handle(GradientRequest(client._context[0], 0, Coefficients.identity(Form(backbone.layers))))
    assert isinstance(reply, Failure)
    assert reply.code is FailureCode.BAD_REQUEST


def test_what_would_depend_on_the_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="client_fraction"):
        settings.changed(settings.Method(), {"server": {"update": "gradient"}, "rounds": {"client_fraction": 0.5}}, "test")
