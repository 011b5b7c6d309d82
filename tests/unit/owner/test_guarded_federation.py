"""Guards within sums and whole federations, and exceptions that quote a row."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.errors import StorageError
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import (
    Failure,
    FailureCode,
    JobRequest,
    Reply,
    Request,
    RevealReply,
    UpdateRequest,
    VectorsRequest,
    encode,
)
from ifedicl.kinds.classify import Example
from ifedicl.ledger.entries import Head
from ifedicl.ledger.ledger import REFUSED, REPLY, SUMMED, read
from ifedicl.ledger.usage import CountedLedger
from ifedicl.owner.endpoint import LedgerRecord, build_endpoint
from ifedicl.owner.policy import Policy, open_policy
from ifedicl.settings import ReadoutSettings
from tests.support import tiny
from tests.support.endpoints import Asked, engine_of
from tests.support.guarded import METHOD, SECURE, asks, code, guarded, installed, rules, summed, usual
from tests.support.jobs import job_of

# Within secure sums


def test_in_a_sum_the_policy_sees_what_goes_in_and_the_ledger_has_what_goes_in_and_what_leaves(tmp_path: Path) -> None:
    guard, _ = summed(tmp_path, rules())
    method = SECURE.model_copy(update={"readout": ReadoutSettings()})
    sent = [guard.ask(request) for request in asks(method).values()]
    assert not [envelope for envelope in sent if isinstance(envelope.frame.reply, Failure)]
    entries = read(tmp_path / "ledger.jsonl")[0][1:]
    expected: list[tuple[str, str]] = []
    for kind, request in asks(method).items():
        own = usual(request).kind
        expected += [(REPLY, own)] if kind in {"job", "context"} else [(SUMMED, own), (REPLY, RevealReply.kind)]
    assert [(entry.event, entry.facts["kind"]) for entry in entries] == expected
    assert not [entry for entry in entries if entry.event == SUMMED and "sha256" in entry.facts]
    assert [envelope.head for envelope in sent] == [entry.head for entry in entries if entry.event == REPLY]


def test_in_a_sum_too_no_more_rounds_leave_and_nothing_that_is_refused(tmp_path: Path) -> None:
    policy = rules(most={"rounds": 2}, allow={"readout_sums": False})
    guard, _ = summed(tmp_path, policy)
    update = installed(guard, SECURE)["update"]
    assert isinstance(update, UpdateRequest)
    assert [code(guard.handle(replace(update, round=number))) for number in range(2)] == [None, None]
    again, _ = summed(tmp_path, policy)
    requests = installed(again, SECURE)
    assert code(again.handle(replace(update, round=2))) is FailureCode.SPENT
    assert code(again.handle(requests["statistics"])) is FailureCode.REFUSED
    assert code(again.handle(requests["update"], Head(2, "0" * 64))) is FailureCode.LEDGER


@pytest.mark.parametrize("masked", [False, True])
def test_a_job_of_the_other_mode_is_refused(tmp_path: Path, masked: bool) -> None:
    guard, client = summed(tmp_path, rules()) if masked else guarded(tmp_path)
    assert code(guard.handle(asks(METHOD if masked else SECURE)["job"])) is FailureCode.OTHER_MODE
    assert not client.asked


# Nothing leaks

ROW = "Ms Jones of 4 Mill Lane has been coughing since Tuesday"


@pytest.mark.mistake
@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, StorageError, RecursionError])
def test_an_exception_that_quotes_a_row_reaches_neither_reply_nor_ledger(
    tmp_path: Path, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: Request) -> Reply:
        raise error(ROW)

    guard, client = guarded(tmp_path, rule=broken)
    caplog.set_level(logging.DEBUG)
    replies = [guard.handle(asks()["job"])]
    client.rule = lambda request: None
    assert code(guard.handle(asks()["job"])) is None
    client.rule = broken
    replies += [guard.handle(request) for request in [*asks().values(), *asks().values()]]
    assert caplog.text.count(ROW) >= len(replies)  # in the owner's own log, where it is looked for
    assert {code(reply) for reply in replies} == {FailureCode.INTERNAL}
    assert not any(word in encode(reply).decode("latin1") for reply in replies for word in ROW.split()[:4] if len(word) > 2)
    assert "Jones" not in (tmp_path / "ledger.jsonl").read_text()


@pytest.mark.mistake
def test_an_exception_in_a_real_client_that_quotes_its_row_does_not_leak(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ifedicl.federation.client_task import ExampleSums

    rows = (*tiny.examples(9), Example(ROW, "good"))
    inner = Client("clinic", rows, backbone, secret=b"own")
    guard = Asked(build_endpoint(inner, rules(), LedgerRecord(CountedLedger(tmp_path / "ledger.jsonl", "clinic")), None, {}))

    def quoting(*arguments: Any) -> None:
        raise ValueError(f"cannot work with {[row.text for row in rows]}")

    monkeypatch.setattr(ExampleSums, "vectors", quoting)
    job = job_of(METHOD, backbone)
    assert code(guard.handle(JobRequest(job))) is None
    reply = guard.handle(VectorsRequest(job.digest, ""))
    assert reply == Failure(FailureCode.INTERNAL)
    written = (tmp_path / "ledger.jsonl").read_bytes() + encode(reply)
    assert not [row.text for row in rows if row.text.encode() in written]


# A whole federation

HANDS = {name: tiny.examples(count, seed=seed) for seed, (name, count) in enumerate({"a": 16, "b": 14, "c": 18}.items())}
SHORT = tiny.method(rounds={"rounds": 2, "select_by": "last"})


def federated(backbone: Backbone, folder: Path, policies: dict[str, Policy], **options: Any) -> Outcome:
    endpoints = [
        build_endpoint(
            Client(name, own, backbone, secret=name.encode()),
            policies.get(name, open_policy()),
            LedgerRecord(CountedLedger(folder / f"{name}.jsonl", name)),
            None,
            {},
        )
        for name, own in HANDS.items()
    ]
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    return Coordinator(
        LocalEngine(endpoints), tiny.TASK, SHORT, shape, checkpoint_file=folder / "checkpoint" / "state.safetensors"
    ).run(**options)


def test_the_job_goes_on_without_a_site_whose_policy_refuses(backbone: Backbone, tmp_path: Path) -> None:
    outcome = federated(backbone, tmp_path, {"b": Policy()})
    assert {item.client for item in outcome.state.traffic if item.failure} == {"b"}
    failures = [(item.step, item.failure) for item in outcome.state.traffic if item.client == "b"]
    # What names no head of its ledger is not looked at: without a job there is none to name. So the job is sent again.
    without_head = {(step, "ledger") for step in ("vectors", "update", "evaluate")}
    assert failures[0] == ("job", "refused")
    assert set(failures) == {("job", "refused"), ("context", "refused"), *without_head}
    assert outcome.state.history[-1].clients == ("a", "c")
    entries, _ = read(tmp_path / "b.jsonl")
    assert [entry.event for entry in entries[1:]] == [REFUSED]


def test_policies_and_ledgers_change_no_number(backbone: Backbone, tmp_path: Path) -> None:
    plain = Coordinator(
        engine_of([Client(name, own, backbone, secret=name.encode()) for name, own in HANDS.items()]),
        tiny.TASK,
        SHORT,
        ModelShape(backbone.fingerprint, backbone.layers, backbone.width),
    ).run()
    outcome = federated(backbone, tmp_path, {})
    assert outcome.context.digest == plain.context.digest
    np.testing.assert_array_equal(outcome.coefficients.scales, plain.coefficients.scales)


def test_the_ledger_counts_the_bytes_that_the_coordinator_counts(backbone: Backbone, tmp_path: Path) -> None:
    outcome = federated(backbone, tmp_path, {})
    for name in HANDS:
        entries, _ = read(tmp_path / f"{name}.jsonl")
        ours = [entry.facts["bytes"] for entry in entries if entry.event == REPLY]
        assert ours == [item.bytes_up for item in outcome.state.traffic if item.client == name]


def test_the_coordinator_keeps_each_last_head_and_tells_it_with_the_next_request(backbone: Backbone, tmp_path: Path) -> None:
    outcome = federated(backbone, tmp_path, {})
    for name in HANDS:
        entries, _ = read(tmp_path / f"{name}.jsonl")
        assert outcome.state.heads[name] == entries[-1].head
        # Each request but the job's and the context's names the entry before, or the one before the context's: nothing is lost.
        heads = [(entry.facts["kind"], entry.facts["held"]) for entry in entries if entry.event == REPLY]
        for number, (kind, known) in enumerate(heads, start=2):
            after_context = number > 2 and heads[number - 3][0] == "context_reply"
            assert known == (0 if kind in {"job_reply", "context_reply"} else number - 1 - after_context)
    lines = [json.loads(line) for line in (tmp_path / "checkpoint" / "heads.jsonl").read_text().splitlines()]
    assert len(lines) == len(outcome.state.traffic)


def test_a_resumed_run_tells_the_heads_that_it_had(backbone: Backbone, tmp_path: Path) -> None:
    first = federated(backbone, tmp_path, {})
    again = federated(backbone, tmp_path, {}, more_rounds=1)
    assert all(again.state.heads[name].entries > head.entries for name, head in first.state.heads.items())
    assert {item.failure for item in again.state.traffic} == {None, "no_context"}  # the clients restarted


def test_a_site_whose_ledger_was_replaced_gets_no_further(backbone: Backbone, tmp_path: Path) -> None:
    federated(backbone, tmp_path, {})
    (tmp_path / "b.jsonl").unlink()
    again = federated(backbone, tmp_path, {}, more_rounds=1)
    failed = {(item.client, item.failure) for item in again.state.traffic if item.failure not in {None, "no_context"}}
    assert failed == {("b", "ledger")}
    assert again.state.history[-1].clients == ("a", "c")
