"""Jobs that ask the task cache: a hit sends nothing, a miss is stored after the job; no server can slip in another task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import cli
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.errors import BackboneError, FederationError
from ifedicl.flare.console import Console
from ifedicl.flare.jobs import JobSettings, write_job
from ifedicl.flare.names import ADAPTER
from ifedicl.flare.task_cache import Finished, request
from ifedicl.kinds.classify import as_classification
from ifedicl.settings import ModelSettings
from ifedicl.store import open_store
from ifedicl.store.protocol import Store
from tests.support import tiny
from tests.support.flare import job

RESULT: dict[str, Any] = {
    "error": None,
    "round": 3,
    "rounds": 3,
    "seconds": 1.0,
    "chosen_round": 2,
    "held_out_loss": 0.5,
    "held_out_accuracy": 0.75,
    "zero_shot_accuracy": 0.5,
    "gate": {"open": True},
    "adapter": "on the server",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(str(tmp_path / "tasks.sqlite"))
    yield opened
    opened.close()


@pytest.fixture
def asked(backbone: Backbone, llama_folder: Path) -> JobSettings:
    """A job whose model is on this machine."""
    source = ModelSettings(source=str(llama_folder), device="cpu", dtype="float32")
    return job(backbone).model_copy(update={"model": source})


def made_by(job: JobSettings, backbone: Backbone) -> Adapter:
    """The adapter that a run of a job would give."""
    return replace(
        tiny.drawn_adapter(backbone, as_classification(job.task, "a test")),
        provenance={"method": job.method.model_dump(mode="json")},
    )


@dataclass
class Jobs:
    """Counts the jobs that were run; each gives ``adapter``."""

    adapter: Adapter
    sent: int = 0

    def __call__(self) -> Finished:
        self.sent += 1
        return Finished(self.adapter, RESULT)


def test_a_miss_is_stored_after_the_job_and_the_next_request_sends_none(
    store: Store, asked: JobSettings, backbone: Backbone
) -> None:
    jobs = Jobs(made_by(asked, backbone))
    missed, finished = request(store, "clinics", asked, jobs)
    assert finished is not None
    assert (missed.found.kind, missed.entry.version, jobs.sent) == ("miss", 1, 1)
    assert "over FLARE" in missed.found.why
    assert dict(missed.entry.metrics) == {
        "rounds": 3,
        "held_out_loss": 0.5,
        "held_out_accuracy": 0.75,
        "gate_open": True,
        "found": "miss",
    }
    assert store.get(missed.entry.id).signature is not None  # so later runs find it as a near task
    hit, nothing = request(store, "clinics", asked, jobs)
    assert (hit.found.kind, nothing, jobs.sent) == ("exact", None, 1)
    np.testing.assert_array_equal(hit.adapter.context.vectors, jobs.adapter.context.vectors)
    assert request(store, "banks", asked, jobs)[0].found.kind == "miss"
    assert request(store, "clinics", asked, jobs, recalibrate=True)[0].entry.version == 2
    assert jobs.sent == 3


def test_an_adapter_of_another_task_is_not_stored(store: Store, asked: JobSettings, backbone: Backbone) -> None:
    """Whoever runs the server could give the console any adapter."""
    other = asked.model_copy(update={"task": tiny.MANY_TOKENS})
    with pytest.raises(FederationError, match="the server gave the adapter of another task"):
        request(store, "clinics", asked, Jobs(made_by(other, backbone)))
    assert store.entries() == []


def test_a_model_that_is_not_here_is_named_before_anything_is_sent(
    store: Store, asked: JobSettings, backbone: Backbone
) -> None:
    jobs = Jobs(made_by(asked, backbone))
    away = asked.model_copy(update={"model": ModelSettings(source="./nowhere")})
    with pytest.raises(BackboneError, match="nowhere"):
        request(store, "clinics", away, jobs)
    assert jobs.sent == 0
    request(store, "clinics", asked, jobs)  # which keeps the reference of the model
    assert request(store, "clinics", away, jobs, recalibrate=True)[0].entry.version == 2


def test_a_readout_of_the_raw_model_is_stored_without_a_signature(store: Store, backbone: Backbone) -> None:
    from ifedicl.settings import load_preset

    asked = job(backbone).model_copy(update={"method": load_preset("one-shot")})
    answer, _ = request(store, "clinics", asked, Jobs(made_by(asked, backbone)))
    assert store.get(answer.entry.id).signature is None


@dataclass
class PlayedSession:
    """FLARE's admin session of a server that ends each job at once."""

    adapter: Adapter | None
    submitted: list[str] = field(default_factory=list)

    def list_jobs(self, *, reverse: bool) -> list[dict[str, str]]:
        return [{"job_id": "1", "job_name": "mood", "status": "FINISHED:COMPLETED"}]

    def submit_job(self, folder: str) -> str:
        self.submitted.append(folder)
        return "1"

    def download_job_result(self, job_id: str, destination: str) -> str:
        from ifedicl import files
        from ifedicl.flare.names import RESULT as NAME

        folder = Path(destination) / job_id / "workspace"
        files.write_json(folder / NAME, RESULT)
        if self.adapter is not None:
            self.adapter.save(folder / ADAPTER)
        return str(folder)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, asked: JobSettings, backbone: Backbone, tmp_path: Path) -> PlayedSession:
    """The commands' session; the folders ``kit`` and ``job`` are beside it."""
    played = PlayedSession(made_by(asked, backbone))
    monkeypatch.setattr("ifedicl.flare.console.connected", lambda kit: contextlib.nullcontext(Console(played)))
    (tmp_path / "kit" / "startup").mkdir(parents=True)
    (tmp_path / "kit" / "startup" / "signature.json").touch()
    write_job(asked, tmp_path / "job")
    monkeypatch.chdir(tmp_path)
    return played


SUBMIT = ["flare", "submit", "job", "--console", "kit"]


def test_submit_takes_a_stored_adapter_and_sends_nothing(session: PlayedSession, capsys: pytest.CaptureFixture[str]) -> None:
    cli.app([*SUBMIT, "--store", "tasks.sqlite"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "round 2 was chosen" in said
    assert "task cache: miss" in said
    assert session.adapter is not None
    assert Adapter.load("runs/flare/mood").task == session.adapter.task
    cli.app([*SUBMIT, "--store", "tasks.sqlite", "--out", "mine"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[0].startswith("task cache: exact: ")
    assert len(session.submitted) == 1
    cli.app(["flare", "resume", *SUBMIT[2:], "--store", "tasks.sqlite", "--out", "mine"], standalone_mode=False)
    assert len(session.submitted) == 2
    assert Adapter.load("mine").fingerprint == session.adapter.fingerprint


def test_submit_without_a_store_fetches_the_adapter_if_it_is_told_where(
    session: PlayedSession, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.app(SUBMIT, standalone_mode=False)
    assert capsys.readouterr().out == "submitted: run mood, id 1\n"
    cli.app([*SUBMIT, "--out", "mine"], standalone_mode=False)
    assert Adapter.load("mine").task == tiny.TASK
    session.adapter = None  # as a server of an earlier ifedicl
    with pytest.raises(FederationError, match="the server has no adapter of it"):
        cli.app([*SUBMIT, "--out", "other"], standalone_mode=False)
