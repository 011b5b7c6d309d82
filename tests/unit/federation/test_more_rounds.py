"""Examples that are added later: only they are vectorised, and calibration goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.data import Role, split_roles
from ifedicl.federation import checkpoint
from ifedicl.federation.checkpoint_tables import Tables
from ifedicl.federation.coordinator import Outcome
from ifedicl.federation.events import Begun, Event
from ifedicl.federation.messages import UpdateRequest
from ifedicl.federation.state import State
from ifedicl.kinds.classify import Example
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.local_runs import HANDS, MORE, assert_same_result, counting, run_real, run_with, training_rows
from tests.support.scripted import SHAPE, ScriptedEngine, held_out, round_of, scripted_method, vectors_reply


def test_only_added_examples_are_vectorised_and_calibration_goes_on(backbone: Backbone, tmp_path: Path) -> None:
    file, method, rows = tmp_path / "state.safetensors", tiny.method(rounds={"rounds": 2}), list[int]()
    first = run_real(backbone, method, engine=engine_of(counting(backbone, rows)), checkpoint=file)
    assert sum(rows) == training_rows(HANDS)
    rows.clear()
    second = run_real(backbone, method, engine=engine_of(counting(backbone, rows, MORE)), checkpoint=file, more_rounds=3)
    assert sum(rows) == training_rows(MORE) - training_rows(HANDS) > 0

    at_once = run_real(backbone, method, MORE)
    for name, vectors in second.state.client_vectors.items():
        np.testing.assert_array_equal(vectors.counts, at_once.state.client_vectors[name].counts)
        np.testing.assert_allclose(vectors.sums, at_once.state.client_vectors[name].sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.context.vectors, at_once.context.vectors, rtol=1e-5, atol=1e-7)

    assert [record.round for record in second.state.history] == [1, 2, 3, 4, 5]
    assert second.state.history[:2] == first.state.history
    assert second.chosen_round not in (1, 2), "a round on other vectors proves nothing for these"
    assert second.state.zero_shot is not None
    assert first.state.zero_shot is not None
    assert second.state.zero_shot.examples > first.state.zero_shot.examples


def test_more_rounds_stopped_at_any_moment_and_resumed_end_the_same(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, save = tiny.method(rounds={"rounds": 1}), checkpoint.save
    run_real(backbone, method, checkpoint=tmp_path / "first")

    def phases(file: Path, *, stop_at: int | None) -> Outcome:
        shutil.copy(tmp_path / "first", file)
        left = [stop_at]

        def stopping(state: State, path: Path, tables: Tables) -> None:
            save(state, path, tables)
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", stopping)
            if stop_at is None:
                return run_real(backbone, method, MORE, checkpoint=file, more_rounds=2)
            with pytest.raises(KeyboardInterrupt):
                run_real(backbone, method, MORE, checkpoint=file, more_rounds=2)
        return run_real(backbone, method, MORE, checkpoint=file, resume=True)

    whole = phases(tmp_path / "whole", stop_at=None)
    for moment in range(6):  # the phase, the replies, the vectors, zero-shot, both rounds
        resumed = phases(tmp_path / f"stopped-{moment}", stop_at=moment)
        np.testing.assert_array_equal(resumed.context.vectors, whole.context.vectors)
        np.testing.assert_array_equal(resumed.coefficients.scales, whole.coefficients.scales)


def test_more_rounds_start_from_the_best_round_and_a_schedule_of_their_own(tmp_path: Path) -> None:
    file, method = tmp_path / "state.safetensors", scripted_method(rounds={"rounds": 2})
    run_with(ScriptedEngine(evaluate=held_out((5, 3.0), (5, 4.0))), method, SHAPE, checkpoint=file)
    engine = ScriptedEngine(evaluate=held_out((5, 3.0), (5, 4.0), (5, 5.0), (5, 6.0)))
    outcome = run_with(engine, method, SHAPE, checkpoint=file, more_rounds=3)
    requests = [request for _, request in engine.asked_for(UpdateRequest)][::3]
    assert [(request.round, request.phase_start, request.phase_rounds) for request in requests] == [
        (2, 2, 3),
        (3, 2, 3),
        (4, 2, 3),
    ]
    assert [round_of(request.coefficients) for request in requests] == [1, 2, 3]
    assert [record.round for record in outcome.state.history] == [1, 2, 3, 4, 5]
    assert outcome.chosen_round == 1, "the vectors are the same, and no later round did better"


def test_after_new_vectors_earlier_rounds_are_no_candidates(tmp_path: Path) -> None:
    file, method = tmp_path / "state.safetensors", scripted_method(rounds={"rounds": 2})
    run_with(ScriptedEngine(evaluate=held_out((5, 3.0), (5, 4.0))), method, SHAPE, checkpoint=file)
    course = held_out((5, 3.0), (5, 4.0), (5, 5.0), (5, 6.0))
    engine = ScriptedEngine(evaluate=course, vectors=lambda name, request: vectors_reply(2.0))
    assert run_with(engine, method, SHAPE, checkpoint=file, more_rounds=3).chosen_round == 3


def test_resuming_a_finished_run_repeats_nothing(backbone: Backbone, tmp_path: Path) -> None:
    file, rows = tmp_path / "state.safetensors", list[int]()
    first = run_real(backbone, checkpoint=file)
    events: list[Event] = []
    again = run_real(backbone, engine=engine_of(counting(backbone, rows)), checkpoint=file, resume=True, observer=events.append)
    assert_same_result(first, again)
    assert rows == []
    assert [type(event) for event in events] == [Begun]


def test_changed_examples_are_vectorised_again(backbone: Backbone, tmp_path: Path) -> None:
    file, method, rows = tmp_path / "state.safetensors", tiny.method(rounds={"rounds": 1}), list[int]()
    run_real(backbone, method, checkpoint=file)
    changed = {**HANDS, "b": tuple(Example(f"{example.text} indeed", example.label) for example in HANDS["b"])}
    outcome = run_real(backbone, method, engine=engine_of(counting(backbone, rows, changed)), checkpoint=file, more_rounds=1)
    expected = len(split_roles(changed["b"], selection=0.25, gate=0.0, seed=0)[Role.TRAIN])
    assert rows == [0, expected, 0]
    fresh = run_real(backbone, method, changed)
    for name in HANDS:
        np.testing.assert_array_equal(outcome.state.client_vectors[name].sums, fresh.state.client_vectors[name].sums)
    np.testing.assert_array_equal(outcome.context.vectors, fresh.context.vectors)
