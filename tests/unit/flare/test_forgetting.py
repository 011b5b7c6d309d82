"""A job by which a run on the server forgets sites and removed examples."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import cli
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.errors import ConfigError, FederationError, TooFewClientsError
from ifedicl.federation.checkpoint import load
from ifedicl.federation.client import Client
from ifedicl.federation.messages import JobRequest, Request
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.state import State
from ifedicl.flare.console import Console
from ifedicl.flare.job_run import run_job
from ifedicl.flare.jobs import JobSettings, Removal, read_job, write_job
from ifedicl.flare.names import RESULT
from ifedicl.flare.status import Board
from ifedicl.flare.transport import TransportEngine
from ifedicl.owner.approval import read_job as read_manifest
from ifedicl.settings import Coordination
from tests.support import tiny
from tests.support.flare import SITES, ScriptedTransport, job
from tests.support.run_folders import contents

EXAMPLES = {name: tiny.examples(10, seed=seed) for seed, name in enumerate(SITES)}
SHORTER = EXAMPLES | {"a": EXAMPLES["a"][:3] + EXAMPLES["a"][4:]}
ROUNDS = {"rounds": 2, "select_by": "last"}
REMOVAL = Removal(left=("b",), changed=("a",), rounds=2, round=2, phases=2)
Spoil = Callable[[str, Request, bytes], bytes | None]


def honest(name: str, request: Request, up: bytes) -> bytes | None:
    return up


def send(settings: JobSettings, backbone: Backbone, folder: Path, *, resume: bool = False, spoil: Spoil = honest) -> Board:
    """Run a job over its sites, which know no earlier job any more."""
    held = EXAMPLES if settings.removal is None else SHORTER
    clients = {name: Client(name, held[name], backbone, secret=b"s") for name in settings.sites}
    board = Board(settings)
    engine = TransportEngine(ScriptedTransport(clients, spoil), settings.sites)
    run_job(engine, settings, folder, resume=resume, observer=board.observe)
    return board


def state_of(folder: Path) -> State:
    state = load(RunFolder(folder).checkpoint)
    assert state is not None
    return state


@pytest.fixture
def first(backbone: Backbone, tmp_path: Path) -> JobSettings:
    """The job of a finished run."""
    settings = job(backbone, rounds=ROUNDS, weighting="examples")
    send(settings, backbone, tmp_path / "run")
    return settings


def test_a_run_on_the_server_forgets_sites_and_examples(first: JobSettings, backbone: Backbone, tmp_path: Path) -> None:
    before = state_of(tmp_path / "run")
    board = send(first.without(REMOVAL), backbone, tmp_path / "run")
    assert (board.facts["round"], board.facts["rounds"]) == (4, 4)
    never = first.model_copy(update={"sites": ("a", "c"), "removal": None})
    clients = {name: Client(name, SHORTER[name], backbone, secret=b"s") for name in never.sites}
    engine = TransportEngine(ScriptedTransport(clients, honest), never.sites)
    run_job(engine, never, tmp_path / "never", resume=False, observer=lambda event: None)
    ours, theirs = (Adapter.load(tmp_path / name) for name in ("run", "never"))
    np.testing.assert_array_equal(ours.context.vectors, theirs.context.vectors)
    assert ours.provenance["forgotten"] == [{"round": 2, "clients_left": 1, "clients_changed": 1, "more_rounds": 2}]
    after = state_of(tmp_path / "run")
    assert after.context is not None
    assert before.context is not None
    assert after.context.digest != before.context.digest
    assert {item.client for item in after.traffic[len(before.traffic) :]} == {"a", "c"}


def test_the_owners_approve_what_the_sites_are_then_asked(first: JobSettings, backbone: Backbone, tmp_path: Path) -> None:
    asked = set()

    def look(name: str, request: Request, up: bytes) -> bytes:
        if isinstance(request, JobRequest):
            asked.add(request.manifest.digest)
        return up

    settings = first.without(REMOVAL)
    send(settings, backbone, tmp_path / "run", spoil=look)
    assert asked == {settings.manifest.digest}
    assert settings.manifest.digest != first.manifest.digest
    assert settings.manifest.run == first.manifest.run, "limits are counted on"


def test_a_job_that_forgets_is_resumed_and_never_begun_twice(first: JobSettings, backbone: Backbone, tmp_path: Path) -> None:
    two_needed = first.model_copy(update={"coordination": Coordination(min_clients=2)})
    settings = two_needed.without(REMOVAL)
    checkpoint = RunFolder(tmp_path / "run").checkpoint
    before = checkpoint.read_bytes()

    def without(step: str) -> Spoil:
        return lambda name, request, up: b"" if (request.kind, name) == (step, "c") else up

    with pytest.raises(TooFewClientsError):
        send(settings, backbone, tmp_path / "run", spoil=without("vectors"))
    assert checkpoint.read_bytes() == before, "until the vectors without the text are there"
    with pytest.raises(TooFewClientsError):
        send(settings, backbone, tmp_path / "run", spoil=without("update"))
    with pytest.raises(ConfigError, match="ifedicl flare resume"):
        send(settings, backbone, tmp_path / "run")
    send(settings, backbone, tmp_path / "run", resume=True)

    send(first, backbone, tmp_path / "whole")
    send(settings, backbone, tmp_path / "whole")
    assert contents(tmp_path / "run" / "adapter") == contents(tmp_path / "whole" / "adapter")
    with pytest.raises(ConfigError, match="sites that stayed"):
        send(first, backbone, tmp_path / "run", resume=True)


@pytest.mark.parametrize("other", [{"round": 1}, {"phases": 3}])
def test_a_job_for_another_state_of_the_run_changes_nothing(
    other: dict[str, int], first: JobSettings, backbone: Backbone, tmp_path: Path
) -> None:
    before = RunFolder(tmp_path / "run").checkpoint.read_bytes()
    with pytest.raises(ConfigError, match="Make it again"):
        send(first.without(REMOVAL.model_copy(update=other)), backbone, tmp_path / "run")
    assert RunFolder(tmp_path / "run").checkpoint.read_bytes() == before


def test_a_run_that_the_server_never_had_forgets_nothing(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Submit the job first"):
        send(job(backbone).without(REMOVAL), backbone, tmp_path / "none")


class Session:
    """FLARE's admin session with one job."""

    def __init__(self, state: str) -> None:
        self.state = state

    def list_jobs(self, *, reverse: bool) -> list[dict[str, str]]:
        return [{"job_id": "1", "job_name": "mood", "status": self.state}]

    def download_job_result(self, job_id: str, destination: str) -> None:
        (Path(destination) / RESULT).write_text(json.dumps({"round": 2, "phases": 1}))


def forget(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str, state: str = "FINISHED:COMPLETED") -> None:
    session: Any = Session(state)
    monkeypatch.setattr("ifedicl.flare.console.connected", lambda kit: contextlib.nullcontext(Console(session)))
    (folder / "startup").mkdir(exist_ok=True)
    (folder / "startup" / "signature.json").touch()
    command = ["flare", "forget", str(folder / "job"), "--console", str(folder), "--out", str(folder / "forget"), *options]
    cli.app(command, standalone_mode=False)


def test_the_command_makes_the_job_and_its_manifest(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(job(backbone), tmp_path / "job")
    forget(monkeypatch, tmp_path, "--client", "b", "--changed", "a", "--rounds", "2")
    made = read_job(tmp_path / "forget")
    assert (made.sites, made.removal) == (("a", "c"), REMOVAL)
    manifest: Any = read_manifest(tmp_path / "forget.manifest.json")
    assert manifest.digest == made.manifest.digest
    assert "ifedicl flare submit" in capsys.readouterr().out


def test_the_command_refuses_unknown_sites_and_unfinished_runs(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_job(job(backbone), tmp_path / "job")
    with pytest.raises(ConfigError, match="received x; allowed: a, b, c"):
        forget(monkeypatch, tmp_path, "--client", "x")
    with pytest.raises(FederationError, match="only a finished run can forget"):
        forget(monkeypatch, tmp_path, "--client", "b", state="RUNNING")
    assert not (tmp_path / "forget").exists()
