"""The three stages, aggregation and cohorts: what the coordinator makes of good answers."""

from __future__ import annotations

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate
from ifedicl.core.coefficients import CONTEXT, Coefficients
from ifedicl.core.subspace import Context
from ifedicl.data import Role, split_roles
from ifedicl.extract import context_vectors
from ifedicl.federation.messages import EvaluateRequest, UpdateReply, UpdateRequest
from ifedicl.kinds.classify import Example
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.engines import RecordingEngine
from tests.support.local_runs import HANDS, assert_same_result, real, run_real, run_with
from tests.support.scripted import SHAPE, ScriptedEngine, scales, scripted_method, vectors_reply

# The method


def test_the_engine_computes_what_a_plain_loop_computes_bit_for_bit(backbone: Backbone) -> None:
    method = tiny.method(rounds={"rounds": 3, "select_by": "last"}, seed=11)
    outcome = run_real(backbone, method)

    # No engine, no messages, no Client, no Coordinator: the paper's three stages on three lists of examples.
    scorer = Scorer(backbone, tiny.TASK)
    parts = {name: split_roles(examples, selection=0.25, gate=0.0, seed=11)[Role.TRAIN] for name, examples in HANDS.items()}
    encoded = {name: scorer.encoded(rows) for name, rows in parts.items()}
    means = [context_vectors(scorer, own.prompts.tokens, own.labels, method).mean() for own in encoded.values()]
    none = np.zeros(())
    vectors = (sum((mean.astype(np.float32).astype(np.float64) for mean in means), none) / len(means)).astype(np.float32)
    coefficients = scales(0.1, layers=backbone.layers)
    for number in range(3):
        updates = [
            calibrate(
                scorer,
                encoded[name],
                Context(vectors),
                coefficients,
                method,
                ClientRound(name, number, 0, 3),
            )
            for name in parts
        ]
        total = sum((update.coefficients.scales.astype(np.float64) for update in updates), none)
        coefficients = Coefficients((total / len(updates)).astype(np.float32))

    assert np.abs(coefficients.scales - scales(0.1, layers=backbone.layers).scales).max() > 0.01, "nothing was learnt"
    np.testing.assert_array_equal(outcome.context.vectors, vectors)
    np.testing.assert_array_equal(outcome.coefficients.scales, coefficients.scales)
    assert outcome.state.history[-1].train_loss == float(np.mean([update.loss for update in updates]))


def test_the_same_seed_gives_the_same_result_and_another_seed_another(backbone: Backbone) -> None:
    first = run_real(backbone, tiny.method(rounds={"rounds": 2}, seed=1))
    assert_same_result(first, run_real(backbone, tiny.method(rounds={"rounds": 2}, seed=1)))
    other = run_real(backbone, tiny.method(rounds={"rounds": 2}, seed=2))
    assert not np.array_equal(first.state.coefficients.scales, other.state.coefficients.scales)
    assert not np.array_equal(first.context.vectors, other.context.vectors)


def test_the_order_in_which_clients_answer_does_not_matter(backbone: Backbone) -> None:
    engine = RecordingEngine(engine_of(real(backbone)), backwards=True)
    method = tiny.method(rounds={"rounds": 2})
    assert_same_result(run_real(backbone, method, engine=engine), run_real(backbone, method))


def test_the_held_out_part_is_neither_vectorised_nor_trained_on(backbone: Backbone) -> None:
    outcome = run_real(backbone)
    for name, examples in HANDS.items():
        roles = split_roles(examples, selection=0.25, gate=0.0, seed=0)
        assert outcome.state.client_vectors[name].examples == len(roles[Role.TRAIN]) < len(examples)
    expected = sum(len(split_roles(examples, selection=0.25, gate=0.0, seed=0)[Role.SELECTION]) for examples in HANDS.values())
    record = outcome.state.history[0].held_out
    assert record is not None
    assert record.examples == expected


def test_bytes_and_seconds_of_every_exchange_are_counted(backbone: Backbone) -> None:
    outcome = run_real(backbone)
    steps = [item.step for item in outcome.state.traffic if item.client == "a"]
    assert steps == ["job", "vectors", "context", "evaluate", "update", "evaluate", "update", "evaluate"]
    assert all(item.bytes_up > 0 and item.bytes_down > 0 and item.seconds > 0 for item in outcome.state.traffic)
    floats = backbone.layers * 2 * backbone.width * 4
    vectors = next(item for item in outcome.state.traffic if item.step == "vectors")
    assert floats < vectors.bytes_up < floats + 600


# Aggregation


@pytest.mark.parametrize(("weighting", "expected"), [("uniform", 2.0), ("examples", 3.25)])
def test_coefficients_are_weighted_as_the_settings_say(weighting: str, expected: float) -> None:
    replies = {
        "a": UpdateReply(scales(1.0), 1, 0.5),
        "b": UpdateReply(scales(1.0), 2, 0.5),
        "c": UpdateReply(scales(4.0), 9, 0.5),
    }
    engine = ScriptedEngine(update=lambda name, request: replies[name])
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}, weighting=weighting), SHAPE)
    np.testing.assert_allclose(outcome.state.coefficients.scales[..., CONTEXT], expected)


@pytest.mark.parametrize(("weighting", "expected"), [("uniform", 2.0), ("examples", 3.25)])
def test_vectors_are_weighted_as_the_settings_say(weighting: str, expected: float) -> None:
    replies = {"a": vectors_reply(1.0, 1), "b": vectors_reply(1.0, 2), "c": vectors_reply(4.0, 9)}
    engine = ScriptedEngine(vectors=lambda name, request: replies[name])
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}, weighting=weighting), SHAPE)
    np.testing.assert_allclose(outcome.context.vectors, expected)


def test_clients_without_examples_of_a_class_are_left_out_of_its_mean(backbone: Backbone) -> None:
    hands = {
        "mixed": tiny.examples(6, seed=1),
        "good": tuple(Example(f"all well {number}", "good") for number in range(4)),
        "bad": tuple(Example(f"all lost {number}", "bad") for number in range(4)),
    }
    balanced = {"vectors": {"balance": "class"}, "holdout": {"selection": 0.0}, "rounds": {"rounds": 1}}
    outcome = run_real(backbone, tiny.method(**balanced), hands)
    vectors_by_name = outcome.state.client_vectors
    assert [list(vectors_by_name[name].counts) for name in hands] == [[3, 3], [4, 0], [0, 4]]
    means = {name: vectors.means for name, vectors in vectors_by_name.items()}
    classes = [(means["mixed"][0] + means["good"][0]) / 2, (means["mixed"][1] + means["bad"][1]) / 2]
    np.testing.assert_allclose(
        outcome.context.vectors, ((classes[0] + classes[1]) / 2).astype(np.float32), rtol=1e-5, atol=1e-8
    )
    assert outcome.state.history[0].clients == tuple(hands)


def test_half_precision_on_the_wire_gives_everyone_the_same_numbers(backbone: Backbone) -> None:
    outcome = run_real(backbone, tiny.method(vectors={"wire_dtype": "float16"}, rounds={"rounds": 1}))
    np.testing.assert_array_equal(outcome.context.vectors, outcome.context.vectors.astype(np.float16).astype(np.float32))
    whole = run_real(backbone, tiny.method(rounds={"rounds": 1}))
    np.testing.assert_allclose(outcome.context.vectors, whole.context.vectors, rtol=3e-3, atol=1e-5)


# The cohort


@pytest.mark.parametrize(("fraction", "at_least", "size"), [(1.0, 1, 6), (0.5, 1, 3), (0.01, 1, 1), (0.01, 4, 4), (0.5, 6, 6)])
def test_the_cohort_is_the_fraction_but_never_below_the_minimum(fraction: float, at_least: int, size: int) -> None:
    engine = ScriptedEngine(tuple("abcdef"))
    rounds = {"rounds": 4, "client_fraction": fraction}
    outcome = run_with(engine, scripted_method(rounds=rounds), SHAPE, min_clients=at_least)
    assert [len(set(record.clients)) for record in outcome.state.history] == [size] * 4
    assert all(list(record.clients) == sorted(record.clients) for record in outcome.state.history)


def test_cohorts_are_drawn_by_the_seed_and_the_round() -> None:
    def cohorts(seed: int) -> list[tuple[str, ...]]:
        method = scripted_method(rounds={"rounds": 8, "client_fraction": 0.34}, seed=seed)
        return [record.clients for record in run_with(ScriptedEngine(tuple("abcdef")), method, SHAPE).state.history]

    assert cohorts(3) == cohorts(3) != cohorts(4)
    assert len(set(cohorts(3))) > 2
    assert set().union(*cohorts(3)) == set("abcdef")


def test_only_the_cohort_calibrates_but_all_clients_evaluate() -> None:
    engine = ScriptedEngine(tuple("abcd"))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 3, "client_fraction": 0.5}), SHAPE)
    asked = [name for name, _ in engine.asked_for(UpdateRequest)]
    assert asked == [name for record in outcome.state.history for name in record.clients]
    assert len(engine.asked_for(EvaluateRequest)) == 4 * (1 + 3)
