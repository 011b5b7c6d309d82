"""Which round is chosen, when rounds are evaluated, and when they stop."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from ifedicl.adapter import Adapter
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.errors import FederationError
from ifedicl.federation.driver import Federated
from ifedicl.federation.messages import (
    ContextRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    Reply,
    UpdateRequest,
)
from ifedicl.federation.state import RoundRecord
from ifedicl.metrics import Tally
from tests.support.local_runs import run_with
from tests.support.scripted import COURSE, LAYERS, SHAPE, ScriptedEngine, held_out, round_of, scripted_method, vectors_reply


@pytest.mark.parametrize(("by", "chosen"), [("loss", 3), ("accuracy", 4), ("last", 5)])
def test_the_round_is_chosen_as_the_settings_say(by: str, chosen: int) -> None:
    engine = ScriptedEngine(evaluate=held_out(*COURSE))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 5, "select_by": by}), SHAPE)
    assert outcome.chosen_round == chosen == round_of(outcome.coefficients)
    assert round_of(outcome.state.coefficients) == 5
    assert [record.held_out for record in outcome.state.history] == [Tally(10, *item) for item in COURSE]


def test_each_round_says_which_client_fares_worst() -> None:
    def evaluate(name: str, request: EvaluateRequest) -> Reply | None:
        return EvaluateReply((Tally(10, {"a": 7, "b": 4, "c": 4}[name], {"a": 9.0, "b": 6.0, "c": 7.0}[name]),))

    outcome = run_with(ScriptedEngine(evaluate=evaluate), scripted_method(rounds={"rounds": 2}), SHAPE)
    record = outcome.state.history[-1]
    assert record.worst == "c"  # as many right as "b", at a higher loss
    assert record.held_out == Tally(30, 15, 22.0)
    assert RoundRecord(1, ("a",), 0.5).worst is None


def test_an_equal_round_does_not_replace_an_earlier_one() -> None:
    engine = ScriptedEngine(evaluate=held_out((5, 4.0), (5, 4.0), (5, 4.0)))
    assert run_with(engine, scripted_method(rounds={"rounds": 3}), SHAPE).chosen_round == 1


@pytest.mark.parametrize(("every", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (9, [5])])
def test_rounds_are_evaluated_as_often_as_asked_and_the_last_one_always(every: int, evaluated: list[int]) -> None:
    engine = ScriptedEngine(evaluate=held_out(*COURSE))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 5, "evaluate_every": every}), SHAPE)
    assert [record.round for record in outcome.state.history if record.held_out is not None] == evaluated
    best = min(evaluated, key=lambda number: COURSE[number - 1][1])
    assert outcome.chosen_round == best


@pytest.mark.parametrize(("patience", "last"), [(0, 5), (1, 2), (2, 5), (9, 5)])
def test_rounds_stop_when_the_patience_is_over(patience: int, last: int) -> None:
    engine = ScriptedEngine(evaluate=held_out(*COURSE))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 5}), SHAPE, patience=patience)
    assert [record.round for record in outcome.state.history] == list(range(1, last + 1))
    assert outcome.chosen_round == (1 if last == 2 else 3)


def test_without_held_out_examples_the_last_round_is_chosen() -> None:
    engine = ScriptedEngine(evaluate=lambda name, request: Failure(FailureCode.NO_EXAMPLES))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 3}), SHAPE)
    assert outcome.chosen_round == 3
    assert outcome.state.zero_shot is None


def test_settings_that_hold_nothing_out_ask_no_client_for_held_out_figures() -> None:
    engine = ScriptedEngine(evaluate=lambda name, request: pytest.fail("asked for figures that no client can have"))
    outcome = run_with(engine, scripted_method(holdout={"selection": 0.0}, rounds={"rounds": 2}), SHAPE)
    assert outcome.chosen_round == 2


def test_zero_shot_is_measured_with_the_identity() -> None:
    engine = ScriptedEngine(evaluate=held_out(*COURSE))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 5}), SHAPE)
    assert outcome.state.zero_shot == Tally(10, 5, 20.0)
    first = engine.asked_for(EvaluateRequest)[0][1]
    np.testing.assert_array_equal(first.coefficients.scales, Coefficients.identity(Form(LAYERS)).scales)


def test_vectors_too_large_for_the_wire_are_not_handed_out(tmp_path: Path) -> None:
    file, method = tmp_path / "state", scripted_method(vectors={"wire_dtype": "float16"})
    engine = ScriptedEngine(vectors=lambda name, request: vectors_reply(1e5))
    with pytest.raises(FederationError, match="wire_dtype"):
        run_with(engine, method, SHAPE, checkpoint=file)
    assert not engine.asked_for(ContextRequest)
    assert run_with(ScriptedEngine(), method, SHAPE, checkpoint=file, resume=True).state.round > 0, "nothing is poisoned"


def test_rounds_are_compared_on_the_clients_that_both_of_them_have() -> None:
    """Client b's hard examples are missing from round 2, which is worse on those of client a."""
    losses = {("a", 1): 2.0, ("b", 1): 30.0, ("a", 2): 3.0, ("a", 3): 1.0, ("b", 3): 29.0}

    def evaluate(name: str, request: EvaluateRequest) -> Reply | None:
        number = round_of(request.coefficients)
        loss = 90.0 if number == 0 else losses.get((name, number))
        return Failure(FailureCode.LOST) if loss is None else EvaluateReply((Tally(10, 5, loss),))

    def best_after(rounds: int) -> int:
        method = scripted_method(rounds={"rounds": rounds, "select_by": "loss"}, holdout={"selection": 0.25, "gate": 0.0})
        return run_with(ScriptedEngine(names=("a", "b"), evaluate=evaluate), method, SHAPE).chosen_round

    assert [best_after(rounds) for rounds in (1, 2, 3)] == [1, 1, 3]


@pytest.mark.parametrize(
    ("by", "tally", "chosen"),
    [
        ("loss", (9, 17.8), 0),  # 2.2 nats of evidence, and the odds on the raw model are ten to one
        ("loss", (1, 17.6), 1),
        ("loss", (9, 25.0), 0),
        ("accuracy", (5, 20.0), 0),
        ("accuracy", (4, 1.0), 0),
        ("accuracy", (6, 90.0), 1),
        ("last", (0, 90.0), 1),
    ],
)
def test_a_round_replaces_the_raw_model_by_evidence(
    by: str, tally: tuple[int, float], chosen: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine(evaluate=held_out(tally))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1, "select_by": by}), SHAPE)
    assert outcome.chosen_round == chosen == round_of(outcome.coefficients)
    assert outcome.coefficients.is_identity == (chosen == 0)
    assert ("no round is better than the raw model" in caplog.text) == (chosen == 0)
    assert outcome.held_out == (Tally(10, *tally) if chosen else Tally(10, 5, 20.0))


def test_the_figures_of_a_run_are_the_raw_models_where_no_round_is_used() -> None:
    engine = ScriptedEngine(evaluate=held_out((9, 17.8)))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1, "select_by": "loss"}), SHAPE)
    figures = Federated(cast("Adapter", None), outcome).figures
    assert figures == {"rounds": 1, "held_out_loss": 2.0, "held_out_accuracy": 0.5, "gate_open": None}


def test_a_round_is_compared_with_the_raw_model_on_the_clients_that_both_have() -> None:
    """Client b has figures of the raw model only, and these are bad."""

    def evaluate(name: str, request: EvaluateRequest) -> Reply | None:
        raw = round_of(request.coefficients) == 0
        if name == "b":
            return EvaluateReply((Tally(10, 0, 100.0),)) if raw else Failure(FailureCode.LOST)
        return EvaluateReply((Tally(10, 5, 7.0 if raw else 6.5),))

    method = scripted_method(rounds={"rounds": 1, "select_by": "loss"})
    assert run_with(ScriptedEngine(names=("a", "b"), evaluate=evaluate), method, SHAPE).chosen_round == 0


def test_more_rounds_go_on_from_the_raw_model_where_no_round_was_better(tmp_path: Path) -> None:
    file, method = tmp_path / "state", scripted_method(rounds={"rounds": 1, "select_by": "loss"})
    course = held_out((5, 19.0), (5, 2.0))
    first = run_with(ScriptedEngine(evaluate=course), method, SHAPE, checkpoint=file)
    assert first.chosen_round == 0
    engine = ScriptedEngine(evaluate=held_out((5, 2.0)))
    again = run_with(engine, method, SHAPE, checkpoint=file, more_rounds=1)
    assert again.chosen_round == 2
    assert round_of(engine.asked_for(UpdateRequest)[0][1].coefficients) == 0
