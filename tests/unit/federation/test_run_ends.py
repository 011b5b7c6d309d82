"""Runs that end by a limit, by numbers that are not finite, or before they begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ifedicl.errors import ConfigError, FederationError, LimitsReachedError, TooFewClientsError
from ifedicl.federation.checkpoint import load
from ifedicl.federation.journal import Journal
from ifedicl.federation.messages import Failure, FailureCode, Reply, UpdateRequest
from tests.support import tiny
from tests.support.local_runs import SHORT, assert_same_result, run_with
from tests.support.scripted import SHAPE, ScriptedEngine, scripted_method

# Ends and comparisons that are not the usual ones


def spent_from(rounds: int, names: str = "abc") -> Callable[[str, UpdateRequest], Reply | None]:
    return lambda name, request: Failure(FailureCode.SPENT) if request.round >= rounds and name in names else None


def test_a_run_whose_owners_limits_are_reached_ends_with_the_rounds_that_were_done(tmp_path: Path) -> None:
    file, method = tmp_path / "state.safetensors", scripted_method(rounds={"rounds": 5, "select_by": "last"})
    outcome = run_with(ScriptedEngine(update=spent_from(2)), method, SHAPE, checkpoint=file)
    assert (outcome.chosen_round, outcome.state.round) == (2, 2)
    again = ScriptedEngine(update=spent_from(0))
    assert_same_result(outcome, run_with(again, method, SHAPE, checkpoint=file, resume=True))
    assert again.asked_for(UpdateRequest) == []


def test_limits_that_are_reached_before_any_round_end_the_run_without_an_adapter() -> None:
    with pytest.raises(LimitsReachedError, match="spent"):
        run_with(ScriptedEngine(update=spent_from(0)), scripted_method(), SHAPE)


def test_a_client_that_is_only_away_is_waited_for() -> None:
    """Limits alone end a run: who is lost may come back."""

    def update(name: str, request: UpdateRequest) -> Reply | None:
        return spent_from(1, "ab")(name, request) or (Failure(FailureCode.LOST) if request.round else None)

    with pytest.raises(TooFewClientsError) as caught:
        run_with(ScriptedEngine(update=update), scripted_method(rounds={"rounds": 3, "select_by": "last"}), SHAPE)
    assert not isinstance(caught.value, LimitsReachedError)


def test_coefficients_that_are_no_numbers_any_more_are_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    method = scripted_method(
        rounds={"rounds": 3, "select_by": "last"},
        server={"optimizer": "momentum", "learning_rate": 1e9},
    )
    with pytest.raises(FederationError, match=r"server\.learning_rate"):
        run_with(ScriptedEngine(), method, SHAPE, checkpoint=file)
    state = load(file)
    assert state is not None
    assert state.coefficients.is_finite


def test_a_resume_with_other_settings_leaves_the_runs_own_story_as_it_is(tmp_path: Path) -> None:
    file, story = tmp_path / "state.safetensors", tmp_path / "metrics.jsonl"
    run_with(ScriptedEngine(), SHORT, SHAPE, checkpoint=file, observer=Journal(story, tiny.TASK, "abc"))
    before = story.read_bytes()
    with pytest.raises(ConfigError):
        run_with(
            ScriptedEngine(),
            tiny.method(seed=9),
            SHAPE,
            checkpoint=file,
            observer=Journal(story, tiny.TASK, ["someone else"]),
            resume=True,
        )
    assert story.read_bytes() == before
