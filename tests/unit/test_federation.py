"""The rounds: what the coordinator makes of its clients' answers, good, bad and missing.

Two kinds of clients: real ones on the tiny Llama, and *scripted* ones that answer by a rule, where only the server's logic
is asked about.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, get_args

import numpy as np
import pytest

from ifedicl.backbone import hooks
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate
from ifedicl.core.coefficients import ACTIVATION, CONTEXT, Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Example, Role, split_roles
from ifedicl.errors import ConfigError, FederationError, LimitsReachedError, TooFewClientsError
from ifedicl.extract import context_vectors
from ifedicl.federation import checkpoint, local_engine
from ifedicl.federation import client as client_module
from ifedicl.federation import client_task as job_module
from ifedicl.federation.assignment import ModelShape
from ifedicl.federation.checkpoint import load
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.engine import Delivery
from ifedicl.federation.events import Begun, Event
from ifedicl.federation.journal import Journal
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    ContextReply,
    ContextRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
    decode_reply,
    encode,
    pack,
)
from ifedicl.federation.state import RoundRecord, State
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import Coordination, Method
from ifedicl.task import Task
from tests import tiny

Hands: TypeAlias = dict[str, tuple[Example, ...]]
HANDS: Hands = {name: tiny.examples(count, seed=seed) for seed, (name, count) in enumerate({"a": 9, "b": 6, "c": 11}.items())}
SHORT = tiny.method(rounds={"rounds": 2, "select_by": "last"})


# Real clients


def real(backbone: Backbone, hands: Mapping[str, tuple[Example, ...]] = HANDS) -> list[Client]:
    return [Client(name, examples, backbone, secret=name.encode()) for name, examples in hands.items()]


def shape_of(backbone: Backbone) -> ModelShape:
    return ModelShape(backbone.fingerprint, backbone.layers, backbone.width)


def run_real(
    backbone: Backbone,
    method: Method = SHORT,
    hands: Mapping[str, tuple[Example, ...]] = HANDS,
    *,
    engine: Any = None,
    **options: Any,
) -> Outcome:
    return run_with(engine or LocalEngine(real(backbone, hands)), method, shape_of(backbone), **options)


def run_with(
    engine: Any,
    method: Method,
    shape: ModelShape,
    *,
    checkpoint: Path | None = None,
    observer: Callable[[Event], None] = lambda event: None,
    resume: bool = False,
    more_rounds: int = 0,
    **coordination: Any,
) -> Outcome:
    coordinator = Coordinator(
        engine,
        tiny.TASK,
        method,
        shape,
        coordination=Coordination(**coordination),
        checkpoint_file=checkpoint,
        observer=observer,
    )
    return coordinator.run(resume=resume, more_rounds=more_rounds)


class Between:
    """An engine around another that may change what comes back."""

    def __init__(self, inner: Any, change: Callable[[list[Delivery], Mapping[str, Request]], list[Delivery]]) -> None:
        self.inner, self.change = inner, change

    def clients(self) -> tuple[str, ...]:
        names: tuple[str, ...] = self.inner.clients()
        return names

    def exchange(self, requests: Mapping[str, Request], deadline: float) -> Iterator[Delivery]:
        yield from self.change(list(self.inner.exchange(requests, deadline)), requests)


class Restarting(LocalEngine):
    """Some clients forget everything before some of their requests."""

    def __init__(self, clients: list[Client], when: Callable[[str, Request], bool]) -> None:
        super().__init__(clients)
        self.when = when
        self.restarts = 0

    def exchange(self, requests: Mapping[str, Request], deadline: float) -> Iterator[Delivery]:
        for name, request in requests.items():
            if self.when(name, request):
                old = self._clients[name]
                assert isinstance(old, Client)
                self._clients[name] = Client(name, old.examples, old.backbone, secret=old._secret)
                self.restarts += 1
        yield from super().exchange(requests, deadline)


def assert_same_result(first: Outcome, second: Outcome) -> None:
    assert first.context.digest == second.context.digest
    assert first.coefficients.arrays.keys() == second.coefficients.arrays.keys()
    for name, array in first.coefficients.arrays.items():
        np.testing.assert_array_equal(array, second.coefficients.arrays[name])
    assert first.chosen_round == second.chosen_round
    assert first.state.history == second.state.history


def failures(outcome: Outcome) -> list[tuple[str, str, str]]:
    return [(item.client, item.step, item.failure) for item in outcome.state.traffic if item.failure]


# Scripted clients: λ counts the rounds, so a rule can tell what it is asked about

LAYERS, WIDTH = 2, 4
SHAPE = ModelShape("f" * 64, LAYERS, WIDTH)
ONE_GROUP = (1, LAYERS, 2, WIDTH)


def scripted_method(**sections: Any) -> Method:
    sections = {"injection": {"context_scale": 0.0}, "calibration": {}, **sections}
    return tiny.method(**sections)


def round_of(coefficients: Coefficients) -> int:
    return round(float(coefficients.scales[0, 0, CONTEXT]))


def scales(context: float, activation: float = 1.0, layers: int = LAYERS) -> Coefficients:
    values = np.empty((layers, 2, 2), dtype=np.float32)
    values[..., CONTEXT], values[..., ACTIVATION] = context, activation
    return Coefficients(values)


def vectors_reply(value: float = 1.0, count: int = 4, shape: tuple[int, ...] = ONE_GROUP) -> VectorsReply:
    means = np.full(shape, value, dtype=np.float32)
    return VectorsReply(ContextVectors.from_wire(means, np.full(shape[0], count)), f"{count}:x", True, "float32", "float32")


@dataclass
class Scripted:
    """An engine whose clients answer by a rule; ``None`` from a rule means the usual answer."""

    names: tuple[str, ...] = ("a", "b", "c")
    vectors: Callable[[str, VectorsRequest], Reply | None] = lambda name, request: None
    update: Callable[[str, UpdateRequest], Reply | None] = lambda name, request: None
    evaluate: Callable[[str, EvaluateRequest], Reply | None] = lambda name, request: None
    compare: Callable[[str, CompareRequest], Reply | None] = lambda name, request: None
    asked: list[tuple[str, Request]] = field(default_factory=list)

    def clients(self) -> tuple[str, ...]:
        return self.names

    def exchange(self, requests: Mapping[str, Request], deadline: float) -> Iterator[Delivery]:
        for name, request in requests.items():
            self.asked.append((name, request))
            yield Delivery(name, self.answer(name, request), 10, 20, 0.5)

    def answer(self, name: str, request: Request) -> Reply:
        if isinstance(request, VectorsRequest):
            return self.vectors(name, request) or vectors_reply()
        if isinstance(request, ContextRequest):
            return ContextReply()
        if isinstance(request, UpdateRequest):
            return self.update(name, request) or UpdateReply(scales(round_of(request.coefficients) + 1), 4, 0.5)
        if isinstance(request, CompareRequest):
            return self.compare(name, request) or compared(0.25, examples=4)
        assert isinstance(request, EvaluateRequest)
        return self.evaluate(name, request) or EvaluateReply((Tally(4, 2, 3.0),))

    def asked_for(self, kind: type[Request]) -> list[tuple[str, Any]]:
        return [(name, request) for name, request in self.asked if isinstance(request, kind)]


def held_out(*tallies: tuple[int, float]) -> Callable[[str, EvaluateRequest], Reply | None]:
    """Client ``a`` has ten selection examples: (correct, loss sum) after each round; the others have none."""

    def evaluate(name: str, request: EvaluateRequest) -> Reply | None:
        if name != "a" or request.role is not Role.SELECTION:
            return Failure(FailureCode.NO_EXAMPLES)
        number = round_of(request.coefficients)
        return EvaluateReply((Tally(10, *tallies[number - 1]),)) if number else EvaluateReply((Tally(10, 5, 7.0),))

    return evaluate


# The method


def test_the_engine_computes_what_a_plain_loop_computes_bit_for_bit(backbone: Backbone) -> None:
    method = tiny.method(rounds={"rounds": 3, "select_by": "last"}, seed=11)
    outcome = run_real(backbone, method)

    # No engine, no messages, no Client, no Coordinator: the paper's three stages on three lists of examples.
    scorer = Scorer(backbone, tiny.TASK)
    parts = {name: split_roles(examples, selection=0.25, gate=0.0, seed=11)[Role.TRAIN] for name, examples in HANDS.items()}
    prompts = {name: scorer.encoder.prompts([row.text for row in rows]) for name, rows in parts.items()}
    labels = {name: [tiny.TASK.index(row.label) for row in rows] for name, rows in parts.items()}
    means = [context_vectors(scorer, prompts[name].tokens, labels[name], method).mean() for name in parts]
    none = np.zeros(())
    vectors = (sum((mean.astype(np.float32).astype(np.float64) for mean in means), none) / len(means)).astype(np.float32)
    coefficients = scales(0.1, layers=backbone.layers)
    for number in range(3):
        updates = [
            calibrate(
                scorer, prompts[name], labels[name], Context(vectors), coefficients, method, ClientRound(name, number, 0, 3)
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
    noisy = {"calibration": {"noise": 0.01}}
    first = run_real(backbone, tiny.method(rounds={"rounds": 2}, seed=1, **noisy))
    assert_same_result(first, run_real(backbone, tiny.method(rounds={"rounds": 2}, seed=1, **noisy)))
    other = run_real(backbone, tiny.method(rounds={"rounds": 2}, seed=2, **noisy))
    assert not np.array_equal(first.state.coefficients.scales, other.state.coefficients.scales)
    assert not np.array_equal(first.context.vectors, other.context.vectors)


def test_the_order_in_which_clients_answer_does_not_matter(backbone: Backbone) -> None:
    engine = Between(LocalEngine(real(backbone)), lambda deliveries, requests: deliveries[::-1])
    method = tiny.method(rounds={"rounds": 2})
    assert_same_result(run_real(backbone, method, engine=engine), run_real(backbone, method))


def test_the_held_out_part_is_neither_vectorised_nor_trained_on(backbone: Backbone) -> None:
    outcome = run_real(backbone)
    for name, examples in HANDS.items():
        roles = split_roles(examples, selection=0.25, gate=0.0, seed=0)
        assert outcome.state.client_vectors[name].examples == len(roles[Role.TRAIN]) < len(examples)
    held = sum(len(split_roles(examples, selection=0.25, gate=0.0, seed=0)[Role.SELECTION]) for examples in HANDS.values())
    record = outcome.state.history[0].held_out
    assert record is not None
    assert record.examples == held


def test_bytes_and_seconds_of_every_exchange_are_counted(backbone: Backbone) -> None:
    outcome = run_real(backbone)
    steps = [item.step for item in outcome.state.traffic if item.client == "a"]
    assert steps == ["vectors", "context", "evaluate", "update", "evaluate", "update", "evaluate"]
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
    engine = Scripted(update=lambda name, request: replies[name])
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1, "weighting": weighting}), SHAPE)
    np.testing.assert_allclose(outcome.state.coefficients.scales[..., CONTEXT], expected)


@pytest.mark.parametrize(("weighting", "expected"), [("uniform", 2.0), ("examples", 3.25)])
def test_vectors_are_weighted_as_the_settings_say(weighting: str, expected: float) -> None:
    replies = {"a": vectors_reply(1.0, 1), "b": vectors_reply(1.0, 2), "c": vectors_reply(4.0, 9)}
    engine = Scripted(vectors=lambda name, request: replies[name])
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}, vectors={"weighting": weighting}), SHAPE)
    np.testing.assert_allclose(outcome.context.vectors, expected)


def test_clients_without_examples_of_a_class_are_left_out_of_its_mean(backbone: Backbone) -> None:
    hands = {
        "mixed": tiny.examples(6, seed=1),
        "good": tuple(Example(f"all well {number}", "good") for number in range(4)),
        "bad": tuple(Example(f"all lost {number}", "bad") for number in range(4)),
    }
    balanced = {"vectors": {"balance": "class"}, "holdout": {"selection": 0.0}, "rounds": {"rounds": 1}}
    outcome = run_real(backbone, tiny.method(**balanced), hands)
    held = outcome.state.client_vectors
    assert [list(held[name].counts) for name in hands] == [[3, 3], [4, 0], [0, 4]]
    means = {name: vectors.means for name, vectors in held.items()}
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
    engine = Scripted(tuple("abcdef"))
    rounds = {"rounds": 4, "client_fraction": fraction}
    outcome = run_with(engine, scripted_method(rounds=rounds), SHAPE, min_clients=at_least)
    assert [len(set(record.clients)) for record in outcome.state.history] == [size] * 4
    assert all(list(record.clients) == sorted(record.clients) for record in outcome.state.history)


def test_cohorts_are_drawn_by_the_seed_and_the_round() -> None:
    def cohorts(seed: int) -> list[tuple[str, ...]]:
        method = scripted_method(rounds={"rounds": 8, "client_fraction": 0.34}, seed=seed)
        return [record.clients for record in run_with(Scripted(tuple("abcdef")), method, SHAPE).state.history]

    assert cohorts(3) == cohorts(3) != cohorts(4)
    assert len(set(cohorts(3))) > 2
    assert set().union(*cohorts(3)) == set("abcdef")


def test_only_the_cohort_calibrates_but_all_clients_evaluate() -> None:
    engine = Scripted(tuple("abcd"))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 3, "client_fraction": 0.5}), SHAPE)
    asked = [name for name, _ in engine.asked_for(UpdateRequest)]
    assert asked == [name for record in outcome.state.history for name in record.clients]
    assert len(engine.asked_for(EvaluateRequest)) == 4 * (1 + 3)


# The choice of a round

COURSE = [(5, 6.0), (8, 9.0), (6, 4.0), (8, 8.0), (7, 5.0)]


@pytest.mark.parametrize(("by", "chosen"), [("loss", 3), ("accuracy", 4), ("last", 5)])
def test_the_round_is_chosen_as_the_settings_say(by: str, chosen: int) -> None:
    engine = Scripted(evaluate=held_out(*COURSE))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 5, "select_by": by}), SHAPE)
    assert outcome.chosen_round == chosen == round_of(outcome.coefficients)
    assert round_of(outcome.state.coefficients) == 5
    assert [record.held_out for record in outcome.state.history] == [Tally(10, *item) for item in COURSE]


def test_each_round_says_which_client_fares_worst() -> None:
    def evaluate(name: str, request: EvaluateRequest) -> Reply | None:
        return EvaluateReply((Tally(10, {"a": 7, "b": 4, "c": 4}[name], {"a": 9.0, "b": 6.0, "c": 7.0}[name]),))

    outcome = run_with(Scripted(evaluate=evaluate), scripted_method(rounds={"rounds": 2}), SHAPE)
    record = outcome.state.history[-1]
    assert record.worst == "c"  # as many right as "b", at a higher loss
    assert record.held_out == Tally(30, 15, 22.0)
    assert RoundRecord(1, ("a",), 0.5).worst is None


def test_an_equal_round_does_not_replace_an_earlier_one() -> None:
    engine = Scripted(evaluate=held_out((5, 4.0), (5, 4.0), (5, 4.0)))
    assert run_with(engine, scripted_method(rounds={"rounds": 3}), SHAPE).chosen_round == 1


@pytest.mark.parametrize(("every", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (9, [5])])
def test_rounds_are_evaluated_as_often_as_asked_and_the_last_one_always(every: int, evaluated: list[int]) -> None:
    engine = Scripted(evaluate=held_out(*COURSE))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 5, "evaluate_every": every}), SHAPE)
    assert [record.round for record in outcome.state.history if record.held_out is not None] == evaluated
    best = min(evaluated, key=lambda number: COURSE[number - 1][1])
    assert outcome.chosen_round == best


@pytest.mark.parametrize(("patience", "last"), [(0, 5), (1, 2), (2, 5), (9, 5)])
def test_rounds_stop_when_the_patience_is_over(patience: int, last: int) -> None:
    engine = Scripted(evaluate=held_out(*COURSE))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 5}), SHAPE, patience=patience)
    assert [record.round for record in outcome.state.history] == list(range(1, last + 1))
    assert outcome.chosen_round == (1 if last == 2 else 3)


def test_without_held_out_examples_the_last_round_is_chosen() -> None:
    engine = Scripted(evaluate=lambda name, request: Failure(FailureCode.NO_EXAMPLES))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 3}), SHAPE)
    assert outcome.chosen_round == 3
    assert outcome.state.zero_shot is None


def test_settings_that_hold_nothing_out_ask_no_client_for_held_out_figures() -> None:
    engine = Scripted(evaluate=lambda name, request: pytest.fail("asked for figures that no client can have"))
    outcome = run_with(engine, scripted_method(holdout={"selection": 0.0}, rounds={"rounds": 2}), SHAPE)
    assert outcome.chosen_round == 2


def test_zero_shot_is_measured_with_the_identity() -> None:
    engine = Scripted(evaluate=held_out(*COURSE))
    outcome = run_with(engine, scripted_method(rounds={"rounds": 5}), SHAPE)
    assert outcome.state.zero_shot == Tally(10, 5, 7.0)
    first = engine.asked_for(EvaluateRequest)[0][1]
    np.testing.assert_array_equal(first.coefficients.scales, Coefficients.identity(Form(LAYERS)).scales)


def test_vectors_too_large_for_the_wire_are_not_handed_out(tmp_path: Path) -> None:
    file, method = tmp_path / "state", scripted_method(vectors={"wire_dtype": "float16"})
    engine = Scripted(vectors=lambda name, request: vectors_reply(1e5))
    with pytest.raises(FederationError, match="wire_dtype"):
        run_with(engine, method, SHAPE, checkpoint=file)
    assert not engine.asked_for(ContextRequest)
    assert run_with(Scripted(), method, SHAPE, checkpoint=file, resume=True).chosen_round > 0, "nothing is poisoned"


# The gate


def compared(
    gain: float, *, spread: float = 0.1, right: int = 0, wrong: int = 0, examples: int = 20, known: int | None = None
) -> CompareReply:
    """An adapter whose mean loss is lower than the raw model's by ``gain``, and which is right or wrong where that is not.

    The raw model is right on ``known`` examples, three quarters unless given; half of them have each label, and half get each.
    """
    known, squares = 3 * examples // 4 if known is None else known, examples * (gain**2 + spread**2)
    adapter, raw = Tally(examples, known + right - wrong, examples * (2.0 - gain)), Tally(examples, known, examples * 2.0)
    halves = (examples // 2, examples - examples // 2)
    return CompareReply(Comparison(adapter, raw, squares, right + wrong, halves, halves))


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
    engine = Scripted(compare=lambda name, request: reply)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 2}, holdout={"gate": 0.2}), SHAPE)
    assert outcome.gate is not None
    assert outcome.gate.adapter.examples == 3 * 20
    assert outcome.gate.is_open is is_open
    expected = scales(outcome.chosen_round) if is_open else Coefficients.identity(Form(LAYERS))
    np.testing.assert_array_equal(outcome.coefficients.scales, expected.scales)
    assert outcome.chosen_round > 0


def test_the_gate_of_one_example_stays_shut() -> None:
    engine = Scripted(
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
        scorer, labels = Scorer(backbone, tiny.TASK), [tiny.TASK.index(row.label) for row in roles[Role.GATE]]
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
    engine = Scripted()
    assert run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE).gate is None
    assert not engine.asked_for(CompareRequest)
    assert all(request.role is Role.SELECTION for _, request in engine.asked_for(EvaluateRequest))


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
    engine = Scripted(compare=lambda name, request: reply)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}, holdout={"gate": 0.2}), SHAPE)
    np.testing.assert_array_equal(outcome.coefficients.scales, Coefficients.identity(Form(LAYERS)).scales)


# Clients that fail

NAN = float("nan")
BAD_UPDATES: dict[str, tuple[Reply, str]] = {
    **{code.value: (Failure(code), code.value) for code in FailureCode if code is not FailureCode.NO_CONTEXT},
    "NaN coefficients": (UpdateReply(scales(NAN), 4, 0.5), "bad_reply"),
    "infinite coefficients": (UpdateReply(scales(float("inf")), 4, 0.5), "bad_reply"),
    "NaN loss": (UpdateReply(scales(9.0), 4, NAN), "bad_reply"),
    "negative loss": (UpdateReply(scales(9.0), 4, -0.1), "bad_reply"),
    "a loss that sums to infinity": (UpdateReply(scales(9.0), 4, 1.7e308), "bad_reply"),
    "more examples than numbers hold": (UpdateReply(scales(9.0), 10**400, 0.5), "bad_reply"),
    "no examples": (UpdateReply(scales(9.0), 0, 0.5), "bad_reply"),
    "fewer than no examples": (UpdateReply(scales(9.0), -4, 0.5), "bad_reply"),
    "too few layers": (UpdateReply(scales(9.0, layers=1), 4, 0.5), "bad_reply"),
    "too many layers": (UpdateReply(scales(9.0, layers=3), 4, 0.5), "bad_reply"),
    "another kind": (EvaluateReply((Tally(4, 2, 3.0),)), "bad_reply"),
    "vectors": (vectors_reply(9.0), "bad_reply"),
}


@pytest.mark.parametrize(("reply", "code"), BAD_UPDATES.values(), ids=BAD_UPDATES)
def test_a_client_whose_update_fails_is_left_out_and_its_code_recorded(reply: Reply, code: str) -> None:
    engine = Scripted(update=lambda name, request: reply if name == "b" and request.round == 1 else None)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 3, "weighting": "examples"}), SHAPE, min_clients=2)
    assert failures(outcome) == [("b", "update", code)]
    assert [record.clients for record in outcome.state.history] == [("a", "b", "c"), ("a", "c"), ("a", "b", "c")]
    np.testing.assert_array_equal(outcome.state.coefficients.scales, scales(3.0).scales)


BAD_VECTORS: dict[str, tuple[Reply, str]] = {
    **{code.value: (Failure(code), code.value) for code in FailureCode if code is not FailureCode.NO_CONTEXT},
    "NaN": (vectors_reply(NAN), "bad_reply"),
    "infinite": (vectors_reply(float("inf")), "bad_reply"),
    "too large for any dtype": (vectors_reply(3e38), "bad_reply"),
    "more examples than numbers hold": (vectors_reply(9.0, 2**62), "bad_reply"),
    "a layer short": (vectors_reply(9.0, shape=(1, LAYERS - 1, 2, WIDTH)), "bad_reply"),
    "another width": (vectors_reply(9.0, shape=(1, LAYERS, 2, WIDTH + 1)), "bad_reply"),
    "a class too many": (vectors_reply(9.0, shape=(2, LAYERS, 2, WIDTH)), "bad_reply"),
    "no examples": (vectors_reply(9.0, 0), "bad_reply"),
    "fewer than no examples": (vectors_reply(9.0, -3), "bad_reply"),
    "another kind": (ContextReply(), "bad_reply"),
}


@pytest.mark.parametrize(("reply", "code"), BAD_VECTORS.values(), ids=BAD_VECTORS)
def test_a_client_whose_vectors_fail_is_left_out_and_its_code_recorded(reply: Reply, code: str) -> None:
    engine = Scripted(vectors=lambda name, request: reply if name == "b" else None)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE, min_clients=2)
    assert failures(outcome) == [("b", "vectors", code)]
    np.testing.assert_array_equal(outcome.context.vectors, np.ones((LAYERS, 2, WIDTH)))
    assert set(outcome.state.client_vectors) == {"a", "c"}


BAD_TALLIES: dict[str, tuple[Reply, str]] = {
    "late": (Failure(FailureCode.LATE), "late"),
    "no examples": (EvaluateReply((Tally(0, 0, 0.0),)), "bad_reply"),
    "more correct than examples": (EvaluateReply((Tally(4, 5, 0.1),)), "bad_reply"),
    "fewer than none correct": (EvaluateReply((Tally(4, -1, 0.1),)), "bad_reply"),
    "NaN": (EvaluateReply((Tally(4, 2, NAN),)), "bad_reply"),
    "negative loss": (EvaluateReply((Tally(4, 2, -1e9),)), "bad_reply"),
    "more examples than numbers hold": (EvaluateReply((Tally(10**400, 2, 1.0),)), "bad_reply"),
    "an answer too many": (EvaluateReply((Tally(4, 2, 3.0), Tally(4, 2, 3.0))), "bad_reply"),
    "no answer": (EvaluateReply(()), "bad_reply"),
    "another kind": (ContextReply(), "bad_reply"),
}


@pytest.mark.parametrize(("reply", "code"), BAD_TALLIES.values(), ids=BAD_TALLIES)
def test_a_tally_that_makes_no_sense_is_left_out_and_its_code_recorded(reply: Reply, code: str) -> None:
    engine = Scripted(evaluate=lambda name, request: reply if name == "b" else None)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE)
    assert failures(outcome) == [("b", "evaluate", code)] * 2
    assert outcome.state.zero_shot == Tally(8, 4, 6.0)


def test_a_client_that_asks_for_vectors_before_there_are_any_is_left_out() -> None:
    engine = Scripted(vectors=lambda name, request: Failure(FailureCode.NO_CONTEXT) if name == "b" else None)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE)
    assert outcome.state.history[0].clients


def test_a_client_that_never_keeps_the_vectors_is_left_out_after_one_more_try() -> None:
    engine = Scripted(update=lambda name, request: Failure(FailureCode.NO_CONTEXT) if name == "b" else None)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE, min_clients=2)
    assert failures(outcome) == [("b", "update", "no_context")] * 2
    assert outcome.state.history[0].clients == ("a", "c")


def test_a_client_with_another_model_is_refused(backbone: Backbone) -> None:
    clients = real(backbone)
    clients[1] = Client("b", HANDS["b"], replace(backbone, fingerprint="0" * 64), secret=b"b")
    outcome = run_real(backbone, engine=LocalEngine(clients))
    assert ("b", "vectors", "wrong_model") in failures(outcome)
    assert {code for _, _, code in failures(outcome)} <= {"wrong_model", "no_context", "no_examples"}
    assert set(outcome.state.client_vectors) == {"a", "c"}
    assert all(record.clients == ("a", "c") for record in outcome.state.history)


def test_a_client_refuses_numbers_that_do_not_fit_its_model(backbone: Backbone) -> None:
    client = real(backbone)[0]
    shape = (backbone.layers, 2, backbone.width)
    for vectors in (np.zeros((backbone.layers, 2, 3), "f4"), np.full(shape, NAN, "f4")):
        request = ContextRequest(tiny.TASK, SHORT, backbone.fingerprint, Context(vectors), "context")
        assert client.handle(request) == Failure(FailureCode.BAD_REQUEST)
    ready = ContextRequest(tiny.TASK, SHORT, backbone.fingerprint, Context(np.zeros(shape, "f4")), "context")
    assert client.handle(ready) == ContextReply()
    for coefficients in (scales(0.1, layers=backbone.layers + 1), scales(NAN, layers=backbone.layers)):
        assert client.handle(UpdateRequest("context", 0, 0, 2, coefficients)) == Failure(FailureCode.BAD_REQUEST)
    assert client.handle(UpdateRequest("another", 0, 0, 2, scales(0.1, layers=3))) == Failure(FailureCode.NO_CONTEXT)


def test_a_client_refuses_a_task_that_its_model_cannot_score(backbone: Backbone) -> None:
    task = Task(name="t", labels=("good", "bad"), template="Text: {text} ", separator="")
    window = replace(backbone, context_window=2)
    client = Client("a", HANDS["a"], window, secret=b"a")
    assert client.handle(VectorsRequest(task, SHORT, backbone.fingerprint, "")) == Failure(FailureCode.BAD_TASK)


def test_a_client_without_examples_says_so(backbone: Backbone) -> None:
    client = Client("a", (), backbone, secret=b"a")
    assert client.handle(VectorsRequest(tiny.TASK, SHORT, backbone.fingerprint, "")) == Failure(FailureCode.NO_EXAMPLES)


def test_a_client_keeps_results_back_that_are_not_finite(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    client = real(backbone)[0]
    for value, wire in ((NAN, "float32"), (float("inf"), "float32"), (1e6, "float16")):
        huge = ContextVectors.from_wire(np.full((1, backbone.layers, 2, backbone.width), value), np.array([3]))
        monkeypatch.setattr(job_module, "context_vectors", lambda *args, huge=huge: huge)
        method = tiny.method(vectors={"wire_dtype": wire})
        with np.errstate(over="ignore"):
            reply = client.handle(VectorsRequest(tiny.TASK, method, backbone.fingerprint, ""))
        assert reply == Failure(FailureCode.NOT_FINITE), (value, wire)


def test_an_answer_after_the_deadline_is_late(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(Client):
        def handle(self, request: Request) -> Reply:
            clock[0] += 10.0 if self.name == "b" and isinstance(request, UpdateRequest) else 0.1
            return super().handle(request)

    clients = [Slow(name, examples, backbone, secret=b"x") for name, examples in HANDS.items()]
    method = tiny.method(rounds={"rounds": 1})
    outcome = run_real(backbone, method, engine=LocalEngine(clients), deadline_seconds=5.0, min_clients=2)
    assert [item for item in failures(outcome) if item[1] == "update"] == [("b", "update", "late")]
    assert outcome.state.history[0].clients == ("a", "c")


def test_two_clients_of_one_name_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="same name"):
        LocalEngine([*real(backbone), *real(backbone)])


@pytest.mark.parametrize("step", ["vectors", "update"])
def test_below_the_minimum_the_codes_are_named(step: str) -> None:
    codes = {"a": FailureCode.NO_EXAMPLES, "b": FailureCode.LOST}
    rule: dict[str, Any] = {step: lambda name, request: Failure(codes[name]) if name in codes else None}
    with pytest.raises(TooFewClientsError, match=rf"round 1, {step}: 1 of 3 .*asks for 2 \(a: no_examples, b: lost\).*resume"):
        run_with(Scripted(**rule), scripted_method(rounds={"rounds": 2}), SHAPE, min_clients=2)


def test_below_the_minimum_the_run_can_be_resumed_when_the_clients_are_back(backbone: Backbone, tmp_path: Path) -> None:
    method = tiny.method(rounds={"rounds": 3})
    file = tmp_path / "state.safetensors"

    def lose_b(deliveries: list[Delivery], requests: Mapping[str, Request]) -> list[Delivery]:
        request = requests[deliveries[0].client]
        away = isinstance(request, UpdateRequest) and request.round == 2
        return [
            replace(delivery, reply=Failure(FailureCode.LOST)) if away and delivery.client == "b" else delivery
            for delivery in deliveries
        ]

    with pytest.raises(TooFewClientsError, match=r"round 3, update: 2 of 3.*b: lost"):
        run_real(backbone, method, engine=Between(LocalEngine(real(backbone)), lose_b), checkpoint=file, min_clients=3)
    rows: list[int] = []
    resumed = run_real(backbone, method, engine=LocalEngine(counting(backbone, rows)), checkpoint=file, resume=True)
    assert rows == [], "stage 1 was not done again"
    assert_same_result(resumed, run_real(backbone, method))


def test_a_run_that_lacks_clients_goes_on_with_fewer_of_them(tmp_path: Path) -> None:
    file, method = tmp_path / "state.safetensors", scripted_method(rounds={"rounds": 3})

    def without_b() -> Scripted:
        return Scripted(
            update=lambda name, request: Failure(FailureCode.LOST) if name == "b" and request.round > 0 else None,
            evaluate=held_out(*COURSE),
        )

    with pytest.raises(TooFewClientsError, match=r"round 2, update.*coordination\.min_clients asks for 3"):
        run_with(without_b(), method, SHAPE, checkpoint=file, min_clients=3, deadline_seconds=1.0)
    changed: dict[str, Any] = {"min_clients": 2, "deadline_seconds": 60.0, "patience": 1}
    outcome = run_with(without_b(), method, SHAPE, checkpoint=file, resume=True, **changed)
    assert [record.clients for record in outcome.state.history] == [("a", "b", "c"), ("a", "c")], "patience ended it"
    again = run_with(without_b(), method, SHAPE, checkpoint=file, resume=True, min_clients=2)
    assert again.state.round == 3, "without patience it goes on"


def test_below_the_minimum_in_stage_1_the_vectors_that_came_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    method = scripted_method(rounds={"rounds": 1})
    away = Scripted(vectors=lambda name, request: Failure(FailureCode.LOST) if name == "b" else None)
    with pytest.raises(TooFewClientsError):
        run_with(away, method, SHAPE, checkpoint=file, min_clients=3)
    back = Scripted()
    run_with(back, method, SHAPE, checkpoint=file, resume=True, min_clients=3)
    assert {name: request.cursor for name, request in back.asked_for(VectorsRequest)} == {"a": "4:x", "b": "", "c": "4:x"}


# Restarts


def counting(backbone: Backbone, rows: list[int], hands: Mapping[str, tuple[Example, ...]] = HANDS) -> list[Client]:
    """Clients that note how many rows they vectorise."""

    class Counting(Client):
        def handle(self, request: Request) -> Reply:
            reply = super().handle(request)
            if isinstance(reply, VectorsReply):
                rows.append(reply.vectors.examples)
            return reply

    return [Counting(name, examples, backbone, secret=name.encode()) for name, examples in hands.items()]


@pytest.mark.parametrize("step", [UpdateRequest, EvaluateRequest])
def test_a_restarted_client_is_sent_the_vectors_again_and_nothing_changes(backbone: Backbone, step: type[Request]) -> None:
    engine = Restarting(real(backbone), lambda name, request: name != "a" and isinstance(request, step))
    # Only the first of each two requests: the second one is the coordinator's second try.
    engine.when = once_each(engine.when)
    method = tiny.method(rounds={"rounds": 2})
    outcome = run_real(backbone, method, engine=engine)
    assert engine.restarts == 4 + 2 * (step is EvaluateRequest)
    assert [code for _, _, code in failures(outcome)].count("no_context") == engine.restarts
    assert_same_result(outcome, run_real(backbone, method))


def once_each(when: Callable[[str, Request], bool]) -> Callable[[str, Request], bool]:
    seen: set[tuple[str, int]] = set()
    kept: list[Request] = []

    def wrapped(name: str, request: Request) -> bool:
        if not when(name, request) or (name, id(request)) in seen:
            return False
        kept.append(request)  # keeps its id from being used again
        seen.add((name, id(request)))
        return True

    return wrapped


def test_all_clients_may_restart_before_every_request(backbone: Backbone) -> None:
    engine = Restarting(real(backbone), once_each(lambda name, request: True))
    method = tiny.method(rounds={"rounds": 2})
    assert_same_result(run_real(backbone, method, engine=engine), run_real(backbone, method))


def test_a_client_does_not_mix_two_tasks_that_it_serves_in_turn(backbone: Backbone) -> None:
    shape = (backbone.layers, 2, backbone.width)
    other = tiny.TASK.model_copy(update={"template": "Note: {text}\nFeeling:"})
    install = ContextRequest(tiny.TASK, SHORT, backbone.fingerprint, Context(np.ones(shape, "f4")), "first")
    update = UpdateRequest("first", 0, 0, 2, scales(0.1, layers=backbone.layers))
    alone, shared = real(backbone)[0], real(backbone)[0]
    assert alone.handle(install) == shared.handle(install) == ContextReply()
    shared.handle(VectorsRequest(other, SHORT, backbone.fingerprint, ""))
    expected, reply = alone.handle(update), shared.handle(update)
    assert isinstance(expected, UpdateReply)
    if reply != Failure(FailureCode.NO_CONTEXT):
        assert isinstance(reply, UpdateReply)
        np.testing.assert_array_equal(reply.coefficients.scales, expected.coefficients.scales)


# What leaves a client


def texts_in(data: bytes) -> list[str]:
    """Examples whose text, key or escaped text is in these bytes."""
    examples = [example for hand in HANDS.values() for example in hand]
    return [
        example.text
        for example in examples
        if example.text.encode() in data or json.dumps(example.text).strip('"').encode() in data or example.key.encode() in data
    ]


def test_no_text_is_in_any_reply_of_a_whole_run(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    def recorded(message: Request | Reply) -> bytes:
        data = encode(message)
        if not isinstance(message, get_args(Request)):
            sent.append(data)
        return data

    monkeypatch.setattr(local_engine, "encode", recorded)
    outcome = run_real(backbone, tiny.method(rounds={"rounds": 2}, holdout={"gate": 0.2}))
    assert len(sent) == len(outcome.state.traffic) > 20
    assert [texts_in(data) for data in sent] == [[]] * len(sent)
    # The search finds what it looks for.
    assert texts_in(pack("leak", {"text": HANDS["a"][0].text}, {})) == [HANDS["a"][0].text]


@pytest.mark.parametrize(
    ("module", "function", "step"),
    [(job_module, "context_vectors", "vectors"), (client_module, "calibrate", "update"), (job_module, "applied", "evaluate")],
)
def test_an_exception_within_a_client_leaves_it_as_a_code_only(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str, step: str
) -> None:
    real_function, secret = getattr(module, function), HANDS["b"][0].text
    sent: list[bytes] = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        if handling[0] == "b":
            raise ValueError(f"cannot handle {secret!r}")
        return real_function(*args, **kwargs)

    handling = [""]

    class Named(Client):
        def handle(self, request: Request) -> Reply:
            handling[0] = self.name
            reply = super().handle(request)
            sent.append(encode(reply))
            return reply

    monkeypatch.setattr(module, function, failing)
    clients = [Named(name, examples, backbone, secret=b"x") for name, examples in HANDS.items()]
    method = tiny.method(rounds={"rounds": 1})
    outcome = run_real(backbone, method, engine=LocalEngine(clients), min_clients=2)
    assert ("b", step, "internal") in failures(outcome)
    assert [texts_in(data) for data in sent] == [[]] * len(sent)
    assert [reply for reply in map(decode_reply, sent) if reply == Failure(FailureCode.INTERNAL)]


def cursor_of(client: Client) -> str:
    reply = client.handle(VectorsRequest(tiny.TASK, SHORT, client.backbone.fingerprint, ""))
    assert isinstance(reply, VectorsReply)
    return reply.cursor


def test_a_client_in_a_second_federation_computes_neither_its_vectors_nor_zero_shot_again(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = real(backbone)
    method = tiny.method(rounds={"rounds": 1}, holdout={"selection": 0.4})
    alone = run_with(LocalEngine(clients[:1]), method, shape_of(backbone))
    vectorised: list[str] = []
    raw: list[str] = []

    def counted(scorer: Scorer, *arguments: Any) -> ContextVectors:
        vectorised.append("again")
        return context_vectors(scorer, *arguments)

    def applied(model: Backbone, context: Context, coefficients: Coefficients) -> Any:
        if not coefficients.active.any():
            raw.append("again")
        return hooks.applied(model, context, coefficients)

    monkeypatch.setattr(job_module, "context_vectors", counted)
    monkeypatch.setattr(job_module, "applied", applied)
    again = run_with(LocalEngine(clients[:1]), method, shape_of(backbone))
    np.testing.assert_array_equal(again.coefficients.scales, alone.coefficients.scales)
    assert (vectorised, raw) == ([], [])
    clients[0].replace_examples(HANDS["b"])
    run_with(LocalEngine(clients[:1]), method, shape_of(backbone))
    assert (vectorised, raw) == (["again"], ["again"])


def test_a_cursor_tells_nothing_without_the_secret(backbone: Backbone) -> None:
    first, again, other = (Client("a", HANDS["a"], backbone, secret=secret) for secret in (b"one", b"one", b"two"))
    assert cursor_of(first) == cursor_of(again)
    assert cursor_of(first).partition(":")[2] != cursor_of(other).partition(":")[2]
    assert cursor_of(first).partition(":")[0] == cursor_of(other).partition(":")[0]
    changed = Client("a", (*HANDS["a"][:-1], Example("another text", "good")), backbone, secret=b"one")
    assert cursor_of(changed).partition(":")[2] != cursor_of(first).partition(":")[2]


@pytest.mark.parametrize("cursor", ["5", "5:", "5:00000000000000000000000000000000", "-1:00", "999:00"])
def test_a_forged_cursor_makes_the_client_start_over(backbone: Backbone, cursor: str) -> None:
    client = real(backbone)[0]
    everything = client.handle(VectorsRequest(tiny.TASK, SHORT, backbone.fingerprint, ""))
    reply = client.handle(VectorsRequest(tiny.TASK, SHORT, backbone.fingerprint, cursor))
    assert isinstance(everything, VectorsReply)
    assert isinstance(reply, VectorsReply)
    assert reply.replaces
    assert reply.vectors.examples == everything.vectors.examples


# Incremental data

MORE: Hands = {name: (*hand, *tiny.examples(7, seed=50 + place)) for place, (name, hand) in enumerate(HANDS.items())}


def training_rows(hands: Mapping[str, tuple[Example, ...]]) -> int:
    return sum(len(split_roles(hand, selection=0.25, gate=0.0, seed=0)[Role.TRAIN]) for hand in hands.values())


def test_only_added_examples_are_vectorised_and_calibration_goes_on(backbone: Backbone, tmp_path: Path) -> None:
    file, method, rows = tmp_path / "state.safetensors", tiny.method(rounds={"rounds": 2}), list[int]()
    first = run_real(backbone, method, engine=LocalEngine(counting(backbone, rows)), checkpoint=file)
    assert sum(rows) == training_rows(HANDS)
    rows.clear()
    second = run_real(backbone, method, engine=LocalEngine(counting(backbone, rows, MORE)), checkpoint=file, more_rounds=3)
    assert sum(rows) == training_rows(MORE) - training_rows(HANDS) > 0

    at_once = run_real(backbone, method, MORE)
    for name, vectors in second.state.client_vectors.items():
        np.testing.assert_array_equal(vectors.counts, at_once.state.client_vectors[name].counts)
        np.testing.assert_allclose(vectors.sums, at_once.state.client_vectors[name].sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.context.vectors, at_once.context.vectors, rtol=1e-5, atol=1e-7)

    assert [record.round for record in second.state.history] == [1, 2, 3, 4, 5]
    assert second.state.history[:2] == first.state.history
    assert second.chosen_round in (3, 4, 5), "a round on other vectors proves nothing for these"
    assert second.state.zero_shot is not None
    assert first.state.zero_shot is not None
    assert second.state.zero_shot.examples > first.state.zero_shot.examples


def test_more_rounds_stopped_at_any_moment_and_resumed_end_the_same(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, save = tiny.method(rounds={"rounds": 1}), checkpoint.save

    def phases(file: Path, *, stop_at: int | None) -> Outcome:
        run_real(backbone, method, checkpoint=file)
        left = [stop_at]

        def stopping(state: State, path: Path) -> None:
            save(state, path)
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
    run_with(Scripted(evaluate=held_out((5, 3.0), (5, 4.0))), method, SHAPE, checkpoint=file)
    engine = Scripted(evaluate=held_out((5, 3.0), (5, 4.0), (5, 5.0), (5, 6.0)))
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
    run_with(Scripted(evaluate=held_out((5, 3.0), (5, 4.0))), method, SHAPE, checkpoint=file)
    course = held_out((5, 3.0), (5, 4.0), (5, 5.0), (5, 6.0))
    engine = Scripted(evaluate=course, vectors=lambda name, request: vectors_reply(2.0))
    assert run_with(engine, method, SHAPE, checkpoint=file, more_rounds=3).chosen_round == 3


def test_resuming_a_finished_run_repeats_nothing(backbone: Backbone, tmp_path: Path) -> None:
    file, rows = tmp_path / "state.safetensors", list[int]()
    first = run_real(backbone, checkpoint=file)
    events: list[Event] = []
    again = run_real(
        backbone, engine=LocalEngine(counting(backbone, rows)), checkpoint=file, resume=True, observer=events.append
    )
    assert_same_result(first, again)
    assert rows == []
    assert [type(event) for event in events] == [Begun]


def test_changed_examples_are_vectorised_anew(backbone: Backbone, tmp_path: Path) -> None:
    file, method, rows = tmp_path / "state.safetensors", tiny.method(rounds={"rounds": 1}), list[int]()
    run_real(backbone, method, checkpoint=file)
    changed = {**HANDS, "b": tuple(Example(f"{example.text} indeed", example.label) for example in HANDS["b"])}
    outcome = run_real(backbone, method, engine=LocalEngine(counting(backbone, rows, changed)), checkpoint=file, more_rounds=1)
    expected = len(split_roles(changed["b"], selection=0.25, gate=0.0, seed=0)[Role.TRAIN])
    assert rows == [0, expected, 0]
    fresh = run_real(backbone, method, changed)
    for name in HANDS:
        np.testing.assert_array_equal(outcome.state.client_vectors[name].sums, fresh.state.client_vectors[name].sums)
    np.testing.assert_array_equal(outcome.context.vectors, fresh.context.vectors)


# Ends and comparisons that are not the usual ones


def spent_from(rounds: int, names: str = "abc") -> Callable[[str, UpdateRequest], Reply | None]:
    return lambda name, request: Failure(FailureCode.SPENT) if request.round >= rounds and name in names else None


def test_a_run_whose_owners_limits_are_reached_ends_with_the_rounds_that_were_done(tmp_path: Path) -> None:
    file, method = tmp_path / "state.safetensors", scripted_method(rounds={"rounds": 5, "select_by": "last"})
    outcome = run_with(Scripted(update=spent_from(2)), method, SHAPE, checkpoint=file)
    assert (outcome.chosen_round, outcome.state.round) == (2, 2)
    again = Scripted(update=spent_from(0))
    assert_same_result(outcome, run_with(again, method, SHAPE, checkpoint=file, resume=True))
    assert again.asked_for(UpdateRequest) == []


def test_limits_that_are_reached_before_any_round_end_the_run_without_an_adapter() -> None:
    with pytest.raises(LimitsReachedError, match="spent"):
        run_with(Scripted(update=spent_from(0)), scripted_method(), SHAPE)


def test_a_client_that_is_only_away_is_waited_for() -> None:
    """Limits alone end a run: who is lost may come back."""

    def update(name: str, request: UpdateRequest) -> Reply | None:
        return spent_from(1, "ab")(name, request) or (Failure(FailureCode.LOST) if request.round else None)

    with pytest.raises(TooFewClientsError) as caught:
        run_with(Scripted(update=update), scripted_method(rounds={"rounds": 3, "select_by": "last"}), SHAPE)
    assert not isinstance(caught.value, LimitsReachedError)


def test_rounds_are_compared_on_the_clients_that_both_of_them_have() -> None:
    """Client b's hard examples are missing from round 2, which is worse on those of client a."""
    losses = {("a", 1): 2.0, ("b", 1): 30.0, ("a", 2): 3.0, ("a", 3): 1.0, ("b", 3): 29.0}

    def evaluate(name: str, request: EvaluateRequest) -> Reply | None:
        number = round_of(request.coefficients)
        loss = 9.0 if number == 0 else losses.get((name, number))
        return Failure(FailureCode.LOST) if loss is None else EvaluateReply((Tally(10, 5, loss),))

    def best_after(rounds: int) -> int:
        method = scripted_method(rounds={"rounds": rounds, "select_by": "loss"}, holdout={"selection": 0.25, "gate": 0.0})
        return run_with(Scripted(names=("a", "b"), evaluate=evaluate), method, SHAPE).chosen_round

    assert [best_after(rounds) for rounds in (1, 2, 3)] == [1, 1, 3]


def test_coefficients_that_are_no_numbers_any_more_are_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    method = scripted_method(
        rounds={"rounds": 3, "select_by": "last"},
        server={"optimizer": "momentum", "learning_rate": 1e9, "momentum": 0.9, "schedule": "constant"},
    )
    with pytest.raises(FederationError, match=r"server\.learning_rate"):
        run_with(Scripted(), method, SHAPE, checkpoint=file)
    state = load(file)
    assert state is not None
    assert state.coefficients.is_finite


def test_a_resume_with_other_settings_leaves_the_runs_own_story_as_it_is(tmp_path: Path) -> None:
    file, story = tmp_path / "state.safetensors", tmp_path / "metrics.jsonl"
    run_with(Scripted(), SHORT, SHAPE, checkpoint=file, observer=Journal(story, tiny.TASK, "abc"))
    before = story.read_bytes()
    with pytest.raises(ConfigError):
        run_with(
            Scripted(),
            tiny.method(seed=9),
            SHAPE,
            checkpoint=file,
            observer=Journal(story, tiny.TASK, ["someone else"]),
            resume=True,
        )
    assert story.read_bytes() == before
