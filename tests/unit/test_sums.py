"""Totals of replies: the same bits in any order, the mean that the paper asks for, and the memory of one."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.exact_sums import OrderlessSum
from ifedicl.errors import TooFewClientsError
from ifedicl.federation.checkpoint import load, save
from ifedicl.federation.messages import UpdateReply, VectorsRequest
from ifedicl.federation.reply_sums import Total
from ifedicl.kinds.classify import Example
from ifedicl.settings import TOGETHER
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.engines import RecordingEngine
from tests.support.local_runs import HANDS, MORE, assert_same_result, counting, real, run_real, run_with, training_rows
from tests.support.scripted import SHAPE, ScriptedEngine, scales, scripted_method, vectors_reply

# Examples weigh alike, so a sum of vectors is enough.
SUMMED: dict[str, Any] = {"weighting": "examples", "vectors": {"balance": "class"}}


def update(value: float, examples: int, loss: float = 0.0) -> UpdateReply:
    return UpdateReply(Coefficients(np.full((1, 2, 2), value, dtype=np.float32)), examples, loss)


# The sum


def test_a_sum_is_exact_where_float64_alone_would_not_be() -> None:
    addends = [1e16, 1.0, -1e16, 1e-8, 3.5, -(2.0**-40)]
    exact = float(sum(map(Fraction, addends)))
    for order in permutations(addends):
        total = OrderlessSum()
        for addend in order:
            total.add({"x": np.array([addend])})
        assert total.totals["x"].tolist() == [exact]
    assert len({sum(order) for order in permutations(addends)}) > 1


def test_a_sum_of_nothing_is_empty_and_addends_are_left_as_they_are() -> None:
    total, addend = OrderlessSum(), np.ones(3)
    assert total.totals == {}
    total.add({"x": addend})
    total.add({"x": addend})
    assert total.totals["x"].tolist() == [2.0] * 3
    assert addend.tolist() == [1.0] * 3


def test_averaged_coefficients_by_hand() -> None:
    total = Total(UpdateReply)
    empty = total.reply
    assert empty is None
    total.add(update(1.0, 1, loss=2.0))
    total.add(update(4.0, 2, loss=5.0))
    assert total.reply is not None
    assert total.reply.coefficients.scales.ravel().tolist() == [3.0] * 4
    assert (total.reply.examples, total.reply.loss) == (3, 4.0)


# What a coordinator keeps


@pytest.mark.parametrize("sections", [{}, {"readout": {}, "holdout": {"selection": 0.25}}, {"subspace": {"rank": 2}}])
def test_the_order_in_which_clients_answer_does_not_matter_to_any_sum(backbone: Backbone, sections: dict[str, object]) -> None:
    method = tiny.method(rounds={"rounds": 2}, **SUMMED, **sections)
    backwards = RecordingEngine(engine_of(real(backbone)), backwards=True)
    first, second = run_real(backbone, method, engine=backwards), run_real(backbone, method)
    assert_same_result(first, second)
    if second.readout is not None:
        assert first.readout is not None
        np.testing.assert_array_equal(first.readout.weights, second.readout.weights)


def test_one_sum_stands_for_all_clients_and_gives_the_global_vectors_of_pooled_text(backbone: Backbone) -> None:
    method = tiny.method(rounds={"rounds": 1}, **SUMMED)
    outcome = run_real(backbone, method)
    assert set(outcome.state.client_vectors) == {TOGETHER}
    assert outcome.state.client_vectors[TOGETHER].examples == training_rows(HANDS)
    assert set(outcome.state.cursors) == set(HANDS)
    pooled = run_real(backbone, tiny.method(rounds={"rounds": 1}, **SUMMED), {"all": tuple(sum(HANDS.values(), ()))})
    assert pooled.state.client_vectors[TOGETHER].examples == pytest.approx(training_rows(HANDS), abs=3)  # held out by hash


def test_examples_that_come_later_are_added_to_the_sum(backbone: Backbone, tmp_path: Path) -> None:
    file, method, rows = tmp_path / "state", tiny.method(rounds={"rounds": 1}, **SUMMED), list[int]()
    run_real(backbone, method, checkpoint=file)
    second = run_real(backbone, method, engine=engine_of(counting(backbone, rows, MORE)), checkpoint=file, more_rounds=1)
    assert sum(rows) == training_rows(MORE) - training_rows(HANDS)
    at_once = run_real(backbone, method, MORE)
    ours, theirs = (outcome.state.client_vectors[TOGETHER] for outcome in (second, at_once))
    np.testing.assert_array_equal(ours.counts, theirs.counts)
    np.testing.assert_allclose(ours.sums, theirs.sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.context.vectors, at_once.context.vectors, rtol=1e-5, atol=1e-7)


def test_what_a_client_gave_before_its_examples_changed_stays_in_a_sum(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, method, rows = tmp_path / "state", tiny.method(rounds={"rounds": 1}, **SUMMED), list[int]()
    first = run_real(backbone, method, checkpoint=file)
    changed = {**HANDS, "b": tuple(Example(f"{example.text} indeed", example.label) for example in HANDS["b"])}
    outcome = run_real(backbone, method, engine=engine_of(counting(backbone, rows, changed)), checkpoint=file, more_rounds=1)
    assert "client b changed earlier examples" in caplog.text
    np.testing.assert_array_equal(outcome.context.vectors, first.context.vectors)
    assert outcome.state.cursors["b"] != first.state.cursors["b"]  # what is added from now on follows


def test_a_client_that_says_it_changed_moves_nothing_and_costs_the_others_nothing(tmp_path: Path) -> None:
    file, method = tmp_path / "state", scripted_method(rounds={"rounds": 1}, weighting="examples")
    engine = ScriptedEngine(vectors=lambda name, request: vectors_reply(2.0 if name == "b" else 1.0))  # replaces, each time
    run_with(engine, method, SHAPE, checkpoint=file)
    outcome = run_with(engine, method, SHAPE, checkpoint=file, more_rounds=1)
    assert len(engine.asked_for(VectorsRequest)) == 2 * 3
    np.testing.assert_allclose(outcome.context.vectors, 4 / 3)


def test_a_reply_of_no_example_is_not_one_of_the_clients_that_a_run_needs() -> None:
    engine = ScriptedEngine(
        vectors=lambda name, request: None if name == "a" else replace(vectors_reply(1.0, 0), replaces=False)
    )
    method = scripted_method(rounds={"rounds": 1}, weighting="examples")
    with pytest.raises(TooFewClientsError):
        run_with(engine, method, SHAPE, min_clients=2)


def test_vectors_that_an_older_version_kept_by_client_become_one_sum(backbone: Backbone, tmp_path: Path) -> None:
    file, rows = tmp_path / "state", list[int]()
    each, summed = tiny.method(rounds={"rounds": 1}), tiny.method(rounds={"rounds": 1}, weighting="examples")
    run_real(backbone, summed, checkpoint=file)
    state = load(file)
    assert state is not None
    by_client = run_real(backbone, each).state.client_vectors
    save(replace(state, client_vectors=by_client), file)
    outcome = run_real(backbone, summed, engine=engine_of(counting(backbone, rows, MORE)), checkpoint=file, more_rounds=1)
    assert set(outcome.state.client_vectors) == {TOGETHER}
    assert outcome.state.client_vectors[TOGETHER].examples == training_rows(MORE)


LAYERS, WIDTH = 12, 512


def peak(clients: int, weighting: str) -> int:
    """The most bytes that a coordinator of this many clients holds."""
    method = tiny.method(holdout={"selection": 0.0}, weighting=weighting, rounds={"rounds": 1})
    update = UpdateReply(scales(1.0, layers=LAYERS), 8, 0.5)
    engine = ScriptedEngine(
        tuple(f"client-{number}" for number in range(clients)),
        vectors=lambda name, request: vectors_reply(1.0, 8, (1, LAYERS, 2, WIDTH)),
        update=lambda name, request: update,
    )
    tracemalloc.start()
    try:
        run_with(engine, method, ModelShape("0" * 64, LAYERS, WIDTH))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_clients_while_aggregation_is_by_sums() -> None:
    peak(3, "examples")  # what is loaded on first use
    one_more = (peak(43, "examples") - peak(3, "examples")) / 40
    vectors = LAYERS * 2 * WIDTH * 4
    assert one_more < vectors / 10, f"{one_more:.0f} bytes a client, of which vectors are {vectors}"
    assert (peak(43, "uniform") - peak(3, "uniform")) / 40 > vectors
