"""The gate: an adapter that is worse than the raw model is not handed out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone import hooks
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.data import Role, split_roles
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    Failure,
    FailureCode,
    Reply,
)
from ifedicl.metrics import Comparison, Tally
from tests.support import tiny
from tests.support.local_runs import real, run_real, run_with
from tests.support.scripted import LAYERS, SHAPE, ScriptedEngine, compared, scales, scripted_method

USUAL = compared(0.25, examples=4).comparison


def changed(**fields: Any) -> CompareReply:
    """A usual answer but for some fields."""
    return CompareReply(replace(USUAL, **fields))


@pytest.mark.parametrize(
    ("reply", "is_open"),
    [
        (compared(0.5, right=3), True),
        (compared(0.0, spread=0.0), True),
        (compared(-0.1), False),
        (compared(0.5, spread=8.0), False),
        (compared(0.5, wrong=5), False),
        (compared(0.5, right=2, wrong=3), True),
        (compared(0.5, known=10), False),
        (compared(0.5, known=13), False),
        (compared(0.5, known=14), True),
    ],
    ids=[
        "better",
        "equal",
        "higher loss",
        "lower by luck",
        "surer but more often wrong",
        "about as often wrong",
        "doubts everything",
        "right as often as by luck",
        "knows something",
    ],
)
def test_the_gate_falls_back_to_zero_shot_where_the_adapter_is_worse(reply: CompareReply, is_open: bool) -> None:
    engine = ScriptedEngine(compare=lambda name, request: reply)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 2}, holdout={"gate": 0.2}), SHAPE)
    assert outcome.gate is not None
    assert outcome.gate.adapter.examples == 3 * 20
    assert outcome.gate.is_open is is_open
    expected = scales(outcome.chosen_round) if is_open else Coefficients.identity(Form(LAYERS))
    np.testing.assert_array_equal(outcome.coefficients.scales, expected.scales)
    assert outcome.chosen_round > 0


def test_the_gate_of_one_example_stays_shut() -> None:
    engine = ScriptedEngine(
        compare=lambda name, request: compared(1.0, examples=1, known=1) if name == "a" else Failure(FailureCode.LATE)
    )
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}, holdout={"gate": 0.2}), SHAPE)
    assert outcome.gate is not None
    assert not outcome.gate.is_open


def test_the_gate_on_real_clients_compares_with_the_raw_model(backbone: Backbone) -> None:
    method = tiny.method(rounds={"rounds": 1}, holdout={"selection": 0.2, "gate": 0.3})
    outcome = run_real(backbone, method)
    expected = Comparison()
    for client in real(backbone):
        roles = split_roles(client.examples, selection=0.2, gate=0.3, seed=method.seed)
        scorer, labels = Scorer(backbone, tiny.TASK), [tiny.TASK.class_of(row) for row in roles[Role.GATE]]
        if not labels:
            continue
        prompts = scorer.encoder.prompts([row.text for row in roles[Role.GATE]])
        raw = scorer.log_probabilities(prompts)
        with hooks.applied(backbone, outcome.context, outcome.state.best):
            expected += Comparison.of(scorer.log_probabilities(prompts), raw, labels)
    assert outcome.gate is not None
    assert outcome.gate.adapter.correct == expected.adapter.correct
    assert outcome.gate.disagreements == expected.disagreements
    assert outcome.gate.squared_gains == pytest.approx(expected.squared_gains, rel=1e-3)


def test_without_gate_settings_nothing_is_asked_of_the_gate_examples() -> None:
    engine = ScriptedEngine()
    assert run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE).gate is None
    assert not engine.asked_for(CompareRequest)
    assert {request.kind for _, request in engine.asked} == {"job", "vectors", "context", "update", "evaluate"}


@pytest.mark.parametrize(
    "reply",
    [
        Failure(FailureCode.LATE),
        changed(zero_shot=Tally(5, 2, 3.0)),
        changed(adapter=Tally(4, 5, USUAL.adapter.loss_sum), disagreements=3),
        changed(adapter=Tally(4, 4, USUAL.adapter.loss_sum), disagreements=0),
        changed(squared_gains=float("nan")),
        changed(squared_gains=-1.0),
        changed(truth=(2, 3)),
        changed(answers=(0, 4), truth=(4, 0)),
        changed(truth=(4,)),
        changed(truth=(5, -1)),
    ],
    ids=[
        "late",
        "other examples",
        "more right than there are",
        "too few disagreements",
        "NaN",
        "negative squares",
        "five labels",
        "answers that cannot be right so often",
        "one label",
        "fewer than none",
    ],
)
def test_a_gate_that_no_client_could_answer_does_not_open(reply: Reply) -> None:
    engine = ScriptedEngine(compare=lambda name, request: reply)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}, holdout={"gate": 0.2}), SHAPE)
    np.testing.assert_array_equal(outcome.coefficients.scales, Coefficients.identity(Form(LAYERS)).scales)
