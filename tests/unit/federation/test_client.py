"""What leaves a client, and what it does not compute twice."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone import hooks
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.extract import context_vectors
from ifedicl.federation import client as client_module
from ifedicl.federation import client_task as job_module
from ifedicl.federation.client import Client
from ifedicl.federation.client_task import ExampleSums
from ifedicl.federation.messages import (
    Envelope,
    Failure,
    FailureCode,
    JobRequest,
    Reply,
    Request,
    VectorsReply,
    VectorsRequest,
    decode_reply,
    encode,
    pack,
)
from ifedicl.kinds.classify import Example
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.jobs import job_of
from tests.support.local_runs import HANDS, SHORT, failures, real, run_real, run_with, shape_of

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

    to_bytes = Envelope.to_bytes

    def recorded(envelope: Envelope) -> bytes:
        sent.append(to_bytes(envelope))
        return sent[-1]

    monkeypatch.setattr(Envelope, "to_bytes", recorded)
    outcome = run_real(backbone, tiny.method(rounds={"rounds": 2}, holdout={"gate": 0.2}))
    assert len(sent) == len(outcome.state.traffic) > 20
    assert [texts_in(data) for data in sent] == [[]] * len(sent)
    # The search finds what it looks for.
    assert texts_in(pack("leak", {"text": HANDS["a"][0].text}, {})) == [HANDS["a"][0].text]


@pytest.mark.mistake
@pytest.mark.parametrize(
    ("module", "function", "step"),
    [(ExampleSums, "vectors", "vectors"), (client_module, "calibrate", "update"), (job_module, "applied", "evaluate")],
)
def test_an_exception_within_a_client_leaves_it_as_a_code_only(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, module: ModuleType | type, function: str, step: str
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
    outcome = run_real(backbone, method, engine=engine_of(clients), min_clients=2)
    assert ("b", step, "internal") in failures(outcome)
    assert [texts_in(data) for data in sent] == [[]] * len(sent)
    assert [reply for reply in map(decode_reply, sent) if reply == Failure(FailureCode.INTERNAL)]


def vectors_of(client: Client, cursor: str = "") -> Reply:
    """The reply to a vectors request with this cursor, after the job."""
    manifest = job_of(SHORT, client.backbone)
    client.handle(JobRequest(manifest))
    return client.handle(VectorsRequest(manifest.digest, cursor))


def cursor_of(client: Client) -> str:
    reply = vectors_of(client)
    assert isinstance(reply, VectorsReply)
    return reply.cursor


def test_a_client_in_a_second_federation_computes_neither_its_vectors_nor_zero_shot_again(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = real(backbone)
    method = tiny.method(rounds={"rounds": 1}, holdout={"selection": 0.4})
    alone = run_with(engine_of(clients[:1]), method, shape_of(backbone))
    vectorised: list[str] = []
    raw: list[str] = []

    def counted(scorer: Scorer, *arguments: Any) -> ContextVectors:
        vectorised.append("again")
        return context_vectors(scorer, *arguments)

    def applied(model: Backbone, context: Context, coefficients: Coefficients) -> Any:
        if not coefficients.active.any():
            raw.append("again")
        return hooks.applied(model, context, coefficients)

    monkeypatch.setattr(ExampleSums, "vectors", staticmethod(counted))
    monkeypatch.setattr(job_module, "applied", applied)
    again = run_with(engine_of(clients[:1]), method, shape_of(backbone))
    np.testing.assert_array_equal(again.coefficients.scales, alone.coefficients.scales)
    assert (vectorised, raw) == ([], [])
    run_with(engine_of([Client("a", HANDS["b"], backbone, secret=b"a")]), method, shape_of(backbone))
    assert (vectorised, raw) == (["again"], ["again"])


def test_a_cursor_tells_nothing_without_the_secret(backbone: Backbone) -> None:
    first, again, other = (Client("a", HANDS["a"], backbone, secret=secret) for secret in (b"one", b"one", b"two"))
    assert cursor_of(first) == cursor_of(again)
    assert cursor_of(first).partition(":")[2] != cursor_of(other).partition(":")[2]
    assert cursor_of(first).partition(":")[0] == cursor_of(other).partition(":")[0]
    changed = Client("a", (*HANDS["a"][:-1], Example("another text", "good")), backbone, secret=b"one")
    assert cursor_of(changed).partition(":")[2] != cursor_of(first).partition(":")[2]


@pytest.mark.parametrize(
    "cursor", ["5", "5:", "-1:00", "999:00", f"-1:{'0' * 32}", f"5:{'0' * 32}\n", f"{'9' * 10}:{'0' * 32}"]
)
def test_what_no_client_ever_gave_as_a_cursor_is_a_bad_request(backbone: Backbone, cursor: str) -> None:
    assert vectors_of(real(backbone)[0], cursor) == Failure(FailureCode.BAD_REQUEST)


@pytest.mark.parametrize("count", [0, 1, 5, 999, 999_999_999])
def test_a_forged_cursor_makes_the_client_start_over(backbone: Backbone, count: int) -> None:
    client = real(backbone)[0]
    everything, reply = vectors_of(client), vectors_of(client, f"{count}:{'0' * 32}")
    assert isinstance(everything, VectorsReply)
    assert isinstance(reply, VectorsReply)
    assert reply.replaces
    assert reply.vectors.examples == everything.vectors.examples
