"""Clients that fail, lie or stay away: their part is left out, and the code is recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.errors import TooFewClientsError
from ifedicl.federation import client_task as job_module
from ifedicl.federation.client import Client
from ifedicl.federation.engine import Delivery
from ifedicl.federation.messages import (
    ContextReply,
    EvaluateReply,
    Failure,
    FailureCode,
    JobReply,
    JobRequest,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsRequest,
)
from ifedicl.kinds.classify import Task
from ifedicl.ledger.entries import Head
from ifedicl.ledger.receipts import Receipt
from ifedicl.metrics import Tally
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.engines import RecordingEngine
from tests.support.jobs import context_of, job_of
from tests.support.local_runs import HANDS, NAN, SHORT, assert_same_result, counting, failures, real, run_real, run_with
from tests.support.scripted import (
    COURSE,
    LAYERS,
    SHAPE,
    WIDTH,
    ScriptedEngine,
    held_out,
    scales,
    scripted_method,
    vectors_reply,
)

LACKS_JOB = FailureCode.NO_CONTEXT, FailureCode.LEDGER
"""Codes of a client that is sent the job again, as long as the coordinator never heard of its ledger."""
BAD_UPDATES: dict[str, tuple[Reply, str]] = {
    **{code.value: (Failure(code), code.value) for code in FailureCode if code not in LACKS_JOB},
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
    engine = ScriptedEngine(update=lambda name, request: reply if name == "b" and request.round == 1 else None)
    outcome = run_with(engine, scripted_method(weighting="examples", rounds={"rounds": 3}), SHAPE, min_clients=2)
    assert failures(outcome) == [("b", "update", code)]
    assert [record.clients for record in outcome.state.history] == [("a", "b", "c"), ("a", "c"), ("a", "b", "c")]
    np.testing.assert_array_equal(outcome.state.coefficients.scales, scales(3.0).scales)


BAD_VECTORS: dict[str, tuple[Reply, str]] = {
    **{code.value: (Failure(code), code.value) for code in FailureCode if code not in LACKS_JOB},
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
    engine = ScriptedEngine(vectors=lambda name, request: reply if name == "b" else None)
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
    engine = ScriptedEngine(evaluate=lambda name, request: reply if name == "b" else None)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE)
    assert failures(outcome) == [("b", "evaluate", code)] * 2
    assert outcome.state.zero_shot == Tally(8, 2, 18.0)


@pytest.mark.parametrize("code", LACKS_JOB)
def test_a_client_that_never_keeps_the_job_is_left_out_after_one_more_try(code: FailureCode) -> None:
    engine = ScriptedEngine(vectors=lambda name, request: Failure(code) if name == "b" else None)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE)
    assert failures(outcome) == [("b", "vectors", code.value)] * 2
    assert [name for name, _ in engine.asked_for(JobRequest)] == ["a", "b", "c", "b"]
    assert set(outcome.state.client_vectors) == {"a", "c"}


def test_a_client_that_refuses_the_job_is_asked_once_more_and_its_code_says_why() -> None:
    class Refusing(ScriptedEngine):
        """Client b takes no job."""

        def answer(self, name: str, request: Request) -> Reply:
            if name != "b":
                return super().answer(name, request)
            return Failure(FailureCode.REFUSED if isinstance(request, JobRequest) else FailureCode.NO_CONTEXT)

    engine = Refusing()
    with pytest.raises(TooFewClientsError, match=r"round 1, vectors: 2 of 3 .*asks for 3 \(b: refused\)"):
        run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE, min_clients=3)
    asked = [request.kind for name, request in engine.asked if name == "b"]
    assert asked == ["job", "vectors", "job"], "it gets no second vectors request"


def test_a_client_that_does_not_take_the_job_answers_nothing_and_is_offered_it_again() -> None:
    held: list[str] = []

    class Late(ScriptedEngine):
        """Client b takes the job only when it is offered again, for the vectors."""

        def answer(self, name: str, request: Request) -> Reply:
            if name == "b" and isinstance(request, JobRequest):
                held.append(request.job)
                return JobReply() if len(held) > 1 else Failure(FailureCode.LATE)
            return super().answer(name, request) if name != "b" or len(held) > 1 else Failure(FailureCode.NO_CONTEXT)

    outcome = run_with(Late(), scripted_method(rounds={"rounds": 1}), SHAPE)
    assert failures(outcome) == [("b", "job", "late"), ("b", "vectors", "no_context")]
    assert len(set(held)) == 1
    assert outcome.state.history[0].clients == ("a", "b", "c")


@pytest.mark.parametrize("code", LACKS_JOB)
def test_a_client_that_never_keeps_the_vectors_is_left_out_after_one_more_try(code: FailureCode) -> None:
    engine = ScriptedEngine(update=lambda name, request: Failure(code) if name == "b" else None)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 1}), SHAPE, min_clients=2)
    assert failures(outcome) == [("b", "update", code.value)] * 2
    assert outcome.state.history[0].clients == ("a", "c")


def test_a_ledger_that_the_coordinator_knows_and_its_client_lost_is_not_asked_again() -> None:
    class WithLedgers(ScriptedEngine):
        """Each reply but a failure comes with a receipt."""

        def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
            for delivery in super().exchange(requests, deadline, heads):
                receipt = Receipt(Head(len(self.asked), "a" * 64), "b" * 64)
                yield delivery if isinstance(delivery.reply, Failure) else replace(delivery, receipt=receipt)

    engine = WithLedgers(update=lambda name, request: Failure(FailureCode.LEDGER) if name == "b" else None)
    outcome = run_with(engine, scripted_method(rounds={"rounds": 2}), SHAPE, min_clients=2)
    assert failures(outcome) == [("b", "update", "ledger")] * 2, "once in each round"
    assert [name for name, _ in engine.asked_for(JobRequest)] == ["a", "b", "c"]


def test_a_client_with_another_model_is_refused(backbone: Backbone) -> None:
    clients = real(backbone)
    clients[1] = Client("b", HANDS["b"], replace(backbone, fingerprint="0" * 64), secret=b"b")
    outcome = run_real(backbone, engine=engine_of(clients))
    assert ("b", "job", "wrong_model") in failures(outcome)
    assert {code for _, _, code in failures(outcome)} <= {"wrong_model", "no_context", "no_examples"}
    assert set(outcome.state.client_vectors) == {"a", "c"}
    assert all(record.clients == ("a", "c") for record in outcome.state.history)


def test_a_client_refuses_numbers_that_do_not_fit_its_model(backbone: Backbone) -> None:
    client, manifest = real(backbone)[0], job_of(SHORT, backbone)
    assert client.handle(JobRequest(manifest)) == JobReply()
    shape = (backbone.layers, 2, backbone.width)
    for vectors in (np.zeros((backbone.layers, 2, 3), "f4"), np.full(shape, NAN, "f4")):
        assert client.handle(context_of(manifest, Context(vectors))) == Failure(FailureCode.BAD_REQUEST)
    ready = context_of(manifest, Context(np.zeros(shape, "f4")))
    assert client.handle(ready) == ContextReply()
    for coefficients in (scales(0.1, layers=backbone.layers + 1), scales(NAN, layers=backbone.layers)):
        assert client.handle(UpdateRequest(ready.context_id, 0, 0, 2, coefficients)) == Failure(FailureCode.BAD_REQUEST)
    assert client.handle(UpdateRequest("another", 0, 0, 2, scales(0.1, layers=3))) == Failure(FailureCode.NO_CONTEXT)


def test_a_client_refuses_a_task_that_its_model_cannot_score(backbone: Backbone) -> None:
    task = Task(name="t", labels=("good", "bad"), template="Text: {text} ", separator="")
    window = replace(backbone, context_window=2)
    client = Client("a", HANDS["a"], window, secret=b"a")
    manifest = job_of(SHORT, backbone, task)
    assert client.handle(JobRequest(manifest)) == Failure(FailureCode.BAD_TASK)
    assert client.handle(VectorsRequest(manifest.digest, "")) == Failure(FailureCode.NO_CONTEXT)


def test_a_client_without_examples_says_so(backbone: Backbone) -> None:
    client = Client("a", (), backbone, secret=b"a")
    manifest = job_of(SHORT, backbone)
    assert client.handle(JobRequest(manifest)) == JobReply()
    assert client.handle(VectorsRequest(manifest.digest, "")) == Failure(FailureCode.NO_EXAMPLES)


def test_a_client_keeps_results_back_that_are_not_finite(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    client = real(backbone)[0]
    for value, wire in ((NAN, "float32"), (float("inf"), "float32"), (1e6, "float16")):
        huge = ContextVectors.from_wire(np.full((1, backbone.layers, 2, backbone.width), value), np.array([3]))
        monkeypatch.setattr(job_module, "context_vectors", lambda *args, huge=huge: huge)
        manifest = job_of(tiny.method(vectors={"wire_dtype": wire}), backbone)
        assert client.handle(JobRequest(manifest)) == JobReply()
        with np.errstate(over="ignore"):
            reply = client.handle(VectorsRequest(manifest.digest, ""))
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
    outcome = run_real(backbone, method, engine=engine_of(clients), deadline_seconds=5.0, min_clients=2)
    assert [item for item in failures(outcome) if item[1] == "update"] == [("b", "update", "late")]
    assert outcome.state.history[0].clients == ("a", "c")


def test_two_clients_of_one_name_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="same name"):
        engine_of([*real(backbone), *real(backbone)])


@pytest.mark.parametrize("step", ["vectors", "update"])
def test_below_the_minimum_the_codes_are_named(step: str) -> None:
    codes = {"a": FailureCode.NO_EXAMPLES, "b": FailureCode.LOST}
    rule: dict[str, Any] = {step: lambda name, request: Failure(codes[name]) if name in codes else None}
    with pytest.raises(TooFewClientsError, match=rf"round 1, {step}: 1 of 3 .*asks for 2 \(a: no_examples, b: lost\).*resume"):
        run_with(ScriptedEngine(**rule), scripted_method(rounds={"rounds": 2}), SHAPE, min_clients=2)


def test_below_the_minimum_the_run_can_be_resumed_when_the_clients_are_back(backbone: Backbone, tmp_path: Path) -> None:
    method = tiny.method(rounds={"rounds": 3})
    file = tmp_path / "state.safetensors"

    def lose_b(name: str, request: Request, reply: Reply) -> Reply:
        away = name == "b" and isinstance(request, UpdateRequest) and request.round == 2
        return Failure(FailureCode.LOST) if away else reply

    with pytest.raises(TooFewClientsError, match=r"round 3, update: 2 of 3.*b: lost"):
        run_real(backbone, method, engine=RecordingEngine(engine_of(real(backbone)), lose_b), checkpoint=file, min_clients=3)
    rows: list[int] = []
    resumed = run_real(backbone, method, engine=engine_of(counting(backbone, rows)), checkpoint=file, resume=True)
    assert rows == [], "stage 1 was not done again"
    assert_same_result(resumed, run_real(backbone, method))


def test_a_run_that_lacks_clients_goes_on_with_fewer_of_them(tmp_path: Path) -> None:
    file, method = tmp_path / "state.safetensors", scripted_method(rounds={"rounds": 3})

    def without_b() -> ScriptedEngine:
        return ScriptedEngine(
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
    away = ScriptedEngine(vectors=lambda name, request: Failure(FailureCode.LOST) if name == "b" else None)
    with pytest.raises(TooFewClientsError):
        run_with(away, method, SHAPE, checkpoint=file, min_clients=3)
    back = ScriptedEngine()
    run_with(back, method, SHAPE, checkpoint=file, resume=True, min_clients=3)
    assert {name: request.cursor for name, request in back.asked_for(VectorsRequest)} == {"a": "4:x", "b": "", "c": "4:x"}
