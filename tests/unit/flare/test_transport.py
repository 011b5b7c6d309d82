"""Runs over a FLARE transport without FLARE's processes: late, lost and damaged replies, and what a site answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import Coefficients
from ifedicl.errors import ConfigError, FederationError, StorageError, TooFewClientsError
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.messages import (
    Envelope,
    Failure,
    FailureCode,
    JobReply,
    JobRequest,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
)
from ifedicl.federation.run_folder import RunFolder
from ifedicl.flare.byte_endpoint import answer
from ifedicl.flare.job_run import run_job
from ifedicl.flare.status import Board
from ifedicl.flare.transport import SiteReply, TransportEngine
from ifedicl.settings import Coordination
from tests.support import tiny
from tests.support.endpoints import bare, engine_of
from tests.support.flare import SITES, ScriptedTransport, job
from tests.support.scripted import ScriptedClient


def wire_of(message: Request | Reply) -> bytes:
    return Envelope.of(message).to_bytes()


def reply_of(wire: bytes) -> Reply:
    return Envelope.from_bytes(wire).frame.reply


def honest(name: str, request: Request, up: bytes) -> bytes | None:
    return up


def clients_of(backbone: Backbone) -> dict[str, Client]:
    return {name: Client(name, tiny.examples(8, seed=seed), backbone, secret=b"s") for seed, name in enumerate(SITES)}


def run(backbone: Backbone, folder: Path, spoil: Callable[[str, Request, bytes], bytes | None], **sections: Any) -> Board:
    settings = job(backbone, **sections)
    board = Board(settings)
    engine = TransportEngine(ScriptedTransport(clients_of(backbone), spoil), SITES)
    run_job(engine, settings, folder, resume=False, observer=board.observe)
    return board


def metrics(folder: Path, client: str) -> list[tuple[str, int, str | None]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["step"], line["round"], line["failure"])
        for line in lines
        if line["event"] == "exchange" and line["client"] == client
    ]


# Messages over a transport


def test_a_run_over_a_post_is_the_local_engines_run(backbone: Backbone, tmp_path: Path) -> None:
    settings = job(backbone)
    run(backbone, tmp_path / "run", honest)
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    outcome = Coordinator(engine_of(tuple(clients_of(backbone).values())), settings.task, settings.method, shape).run()
    from ifedicl.adapter import Adapter

    adapter = Adapter.load(tmp_path / "run" / "adapter")
    np.testing.assert_array_equal(adapter.coefficients.scales, outcome.coefficients.scales)
    np.testing.assert_array_equal(adapter.context.vectors, outcome.context.vectors)


def spoilt(change: Callable[[Reply], bytes | None], kind: type[Request] = UpdateRequest) -> Callable[..., bytes | None]:
    """Site b answers one kind of request with something else."""

    def spoil(name: str, request: Request, up: bytes) -> bytes | None:
        return change(reply_of(up)) if name == "b" and isinstance(request, kind) else up

    return spoil


def with_scales(value: Callable[[np.ndarray], np.ndarray]) -> Callable[[Reply], bytes]:
    def change(reply: Reply) -> bytes:
        assert isinstance(reply, UpdateReply)
        return wire_of(replace(reply, coefficients=Coefficients(value(reply.coefficients.scales).astype(np.float32))))

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (with_scales(lambda scales: scales * np.nan), "bad_reply"),
        (with_scales(lambda scales: scales[:-1]), "bad_reply"),
        (lambda reply: wire_of(Failure(FailureCode.WRONG_MODEL)), "wrong_model"),
        (lambda reply: b"\x00" * 40, "bad_reply"),
        (lambda reply: b"", "bad_reply"),
        (lambda reply: wire_of(UpdateRequest("x", 0, 0, 1, reply.coefficients)), "bad_reply"),
    ],
    ids=["NaN", "wrong shapes", "another model", "bytes that are no message", "nothing at all", "a request for a reply"],
)
def test_a_spoilt_reply_is_left_out_and_the_others_go_on(
    backbone: Backbone, tmp_path: Path, change: Callable[[Reply], bytes], code: str
) -> None:
    run(backbone, tmp_path, spoilt(change))
    updates = [item for item in metrics(tmp_path, "b") if item[0] == "update"]
    assert updates == [("update", number, code) for number in range(2)]
    assert all(failure is None for step, _, failure in metrics(tmp_path, "a"))


def test_a_late_site_holds_nobody_up_longer_than_the_deadline(backbone: Backbone, tmp_path: Path) -> None:
    start = time.monotonic()
    run(backbone, tmp_path, spoilt(lambda reply: None), rounds={"rounds": 2}, coordination=Coordination(deadline_seconds=2))
    assert time.monotonic() - start < 10
    assert [item for item in metrics(tmp_path, "b") if item[0] == "update"] == [("update", 0, "late"), ("update", 1, "late")]


def test_a_lost_site_is_not_waited_for(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifedicl.flare.transport._POLL_SECONDS", 0.05)
    transport = ScriptedTransport(clients_of(backbone), lambda name, request, up: None if name == "b" else up)
    transport.lost = {"b"}
    start = time.monotonic()
    settings = job(backbone)
    engine = TransportEngine(transport, SITES)
    Coordinator(engine, settings.task, settings.method, settings.manifest.model).run()
    assert time.monotonic() - start < 15  # the deadline is an hour
    request = UpdateRequest("x", 0, 0, 1, Coefficients(np.zeros((3, 2, 2), dtype=np.float32)))
    last = list(engine.exchange(dict.fromkeys(SITES, request), 3600.0, {}))[-1]
    assert (last.client, last.reply) == ("b", Failure(FailureCode.LOST))


def test_a_reply_that_comes_twice_or_from_nobody_asked_counts_once(backbone: Backbone) -> None:
    transport = ScriptedTransport(clients_of(backbone), honest)
    request = UpdateRequest("x", 0, 0, 1, Coefficients(np.zeros((3, 2, 2), dtype=np.float32)))

    def send(wire: bytes, names: Sequence[str], inbox: Callable[[SiteReply], None]) -> Callable[[], None]:
        for name in ("a", "a", "mallory", "b"):
            inbox(SiteReply(name, wire_of(Failure(FailureCode.NO_CONTEXT)), 1, 2))
        return lambda: None

    transport.send = send  # type: ignore[method-assign]
    got = list(TransportEngine(transport, SITES).exchange({"a": request, "b": request}, 5.0, {}))
    assert [item.client for item in got] == ["a", "b"]
    assert {item.carrier_bytes for item in got} == {3}


def test_a_job_that_is_stopped_ends_at_once_and_what_was_sent_is_taken_back(backbone: Backbone) -> None:
    transport = ScriptedTransport(clients_of(backbone), lambda name, request, up: None)
    transport.stopped = True
    request = UpdateRequest("x", 0, 0, 1, Coefficients(np.zeros((3, 2, 2), dtype=np.float32)))
    with pytest.raises(FederationError, match="ifedicl flare resume"):
        list(TransportEngine(transport, SITES).exchange({"a": request}, 3600.0, {}))
    assert transport.cancelled == 1


def test_too_few_sites_end_the_job_and_a_resume_goes_on(backbone: Backbone, tmp_path: Path) -> None:
    def dying(name: str, request: Request, up: bytes) -> bytes | None:
        gone = isinstance(request, UpdateRequest) and request.round == 1 and name != "a"
        return wire_of(Failure(FailureCode.INTERNAL)) if gone else up

    with pytest.raises(TooFewClientsError):
        run(backbone, tmp_path / "run", dying, rounds={"rounds": 3}, coordination=Coordination(min_clients=2))
    # How the run is driven is no part of it: the job that goes on may bring another deadline and ask for fewer sites.
    settings = job(backbone, rounds={"rounds": 3}, coordination=Coordination(min_clients=1, deadline_seconds=60.0))
    engine = TransportEngine(ScriptedTransport(clients_of(backbone), honest), SITES)
    run_job(engine, settings, tmp_path / "run", resume=True, observer=lambda event: None)
    run(backbone, tmp_path / "whole", honest, rounds={"rounds": 3}, coordination=Coordination(min_clients=2))
    for name in ("adapter.safetensors", "adapter.json"):
        assert (tmp_path / "run" / "adapter" / name).read_bytes() == (tmp_path / "whole" / "adapter" / name).read_bytes()


def test_a_full_disk_on_the_server_ends_the_job_with_a_remedy_and_a_resume_goes_on(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    real, left = os.fsync, [4]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match="Free some space"):
            run(backbone, tmp_path / "run", honest)
    assert RunFolder(tmp_path / "run").checkpoint.is_file()
    engine = TransportEngine(ScriptedTransport(clients_of(backbone), honest), SITES)
    run_job(engine, job(backbone), tmp_path / "run", resume=True, observer=lambda event: None)
    assert (tmp_path / "run" / "adapter" / "adapter.json").is_file()


def test_a_run_that_is_there_is_not_started_over(backbone: Backbone, tmp_path: Path) -> None:
    run(backbone, tmp_path, honest)
    with pytest.raises(ConfigError, match="ifedicl flare resume"):
        run(backbone, tmp_path, honest)


def test_the_board_tells_who_answered_and_what_it_cost(backbone: Backbone, tmp_path: Path) -> None:
    facts = run(backbone, tmp_path, spoilt(lambda reply: wire_of(Failure(FailureCode.WRONG_MODEL)))).facts
    assert (facts["round"], facts["rounds"], facts["run"]) == (2, 2, "mood")
    assert facts["train_loss"] > 0
    assert facts["sites"]["a"]["last"] == "answered"
    exchanges = len(metrics(tmp_path, "a"))
    assert facts["sites"]["a"]["carrier_bytes"] == 300 * exchanges
    assert json.loads(json.dumps(facts)) == facts


# The site's endpoint


def raises(request: Request) -> Reply:
    raise RuntimeError("the row of patient 4711")


@pytest.mark.mistake
def test_whatever_a_site_raises_becomes_a_code_without_text(caplog: pytest.LogCaptureFixture) -> None:
    wire = wire_of(UpdateRequest("x", 0, 0, 1, Coefficients(np.zeros((3, 2, 2), dtype=np.float32))))
    up = answer(bare(ScriptedClient("x", raises)), wire)
    assert reply_of(up) == Failure(FailureCode.INTERNAL)
    assert b"4711" not in up
    assert "4711" in caplog.text  # the owner's own log


@pytest.mark.parametrize("wire", [None, "text", b"", b"\xff" * 100, wire_of(Failure(FailureCode.LATE))])
def test_what_is_no_request_is_refused_with_a_code(wire: object) -> None:
    assert reply_of(answer(bare(ScriptedClient("x", raises)), wire)) == Failure(FailureCode.BAD_REQUEST)


def test_a_site_whose_client_could_not_be_opened_answers_with_a_code() -> None:
    wire = wire_of(UpdateRequest("x", 0, 0, 1, Coefficients(np.zeros((3, 2, 2), dtype=np.float32))))
    assert reply_of(answer(None, wire)) == Failure(FailureCode.INTERNAL)


def test_vectors_that_cross_a_post_are_the_sites_own(backbone: Backbone) -> None:
    """The reply is decoded from bytes, never handed over as an object."""
    transport = ScriptedTransport(clients_of(backbone), honest)
    manifest = job(backbone).manifest
    engine, request = TransportEngine(transport, ("a",)), VectorsRequest(manifest.digest, "")
    (taken,) = engine.exchange({"a": JobRequest(manifest)}, 30.0, {})
    assert taken.reply == JobReply()
    (delivery,) = engine.exchange({"a": request}, 30.0, {})
    own = transport.clients["a"].handle(request)
    assert isinstance(delivery.reply, VectorsReply)
    assert isinstance(own, VectorsReply)
    assert delivery.reply is not own
    np.testing.assert_array_equal(delivery.reply.vectors.means, own.vectors.means)
    assert delivery.bytes_up == len(wire_of(own))
