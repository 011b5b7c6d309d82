"""The FLARE engine without FLARE's processes: what a transport may do to messages, what a door lets out, jobs and projects."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.fuel.flare_api.api_spec import JobNotRunning

from ifedicl import cli
from ifedicl.backbone.load import Backbone, shape_of
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import Coefficients
from ifedicl.errors import ConfigError, FederationError, StorageError, TooFewClientsError
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.messages import (
    Envelope,
    Failure,
    FailureCode,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
)
from ifedicl.federation.run_folder import RunFolder
from ifedicl.flare import names, processes
from ifedicl.flare.byte_endpoint import answer
from ifedicl.flare.console import Console
from ifedicl.flare.job_run import run_job
from ifedicl.flare.jobs import JobSettings, as_resume, job_settings, read_job, write_job
from ifedicl.flare.kits import provision
from ifedicl.flare.participants import load_project
from ifedicl.flare.site_policy import authorization, write_server_rules, write_site_rules
from ifedicl.flare.status import Board
from ifedicl.flare.transport import SiteReply, TransportEngine
from ifedicl.settings import Coordination, ModelSettings, changed, load_settings, validated
from tests.support import tiny
from tests.support.endpoints import bare, engine_of
from tests.support.run_folders import short_run

SITES = ("a", "b", "c")


def wire_of(message: Request | Reply) -> bytes:
    return Envelope.of(message).to_bytes()


def reply_of(wire: bytes) -> Reply:
    return Envelope.from_bytes(wire).frame.reply


class ScriptedTransport:
    """Clients of this process behind a transport; ``spoil`` may change, hold back or delay what one of them answers."""

    def __init__(self, doors: Mapping[str, Client], spoil: Callable[[str, Request, bytes], bytes | None]) -> None:
        self.doors = doors
        self.spoil = spoil
        self.lost: set[str] = set()
        self.stopped = False
        self.cancelled = 0
        self._turn = threading.Lock()  # they share one model here

    def send(self, wire: bytes, names: Sequence[str], inbox: Callable[[SiteReply], None]) -> Callable[[], None]:
        def work() -> None:
            for name in names:
                with self._turn:
                    up = self.spoil(name, Envelope.from_bytes(wire).frame.request, answer(bare(self.doors[name]), wire))
                if up is not None:
                    inbox(SiteReply(name, up, 100, 200))

        threading.Thread(target=work).start()

        def cancel() -> None:
            self.cancelled += 1

        return cancel

    def is_lost(self, name: str) -> bool:
        return name in self.lost

    def is_stopped(self) -> bool:
        return self.stopped


def honest(name: str, request: Request, up: bytes) -> bytes | None:
    return up


def doors(backbone: Backbone) -> dict[str, Client]:
    return {name: Client(name, tiny.examples(8, seed=seed), backbone, secret=b"s") for seed, name in enumerate(SITES)}


def job(backbone: Backbone, *, coordination: Coordination | None = None, **sections: Any) -> JobSettings:
    return JobSettings(
        name="mood",
        sites=SITES,
        task=tiny.TASK,
        method=tiny.method(**sections),
        coordination=coordination or Coordination(),
        model=ModelSettings(source="here"),
        fingerprint=backbone.fingerprint,
        layers=backbone.layers,
        width=backbone.width,
    )


def run(backbone: Backbone, folder: Path, spoil: Callable[[str, Request, bytes], bytes | None], **sections: Any) -> Board:
    settings = job(backbone, **sections)
    board = Board(settings)
    engine = TransportEngine(ScriptedTransport(doors(backbone), spoil), SITES)
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
    outcome = Coordinator(engine_of(tuple(doors(backbone).values())), settings.task, settings.method, shape).run()
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
    assert updates == [("update", number, code) for number in range(3)]
    assert all(failure is None for step, _, failure in metrics(tmp_path, "a"))


def test_a_late_site_holds_nobody_up_longer_than_the_deadline(backbone: Backbone, tmp_path: Path) -> None:
    start = time.monotonic()
    run(backbone, tmp_path, spoilt(lambda reply: None), rounds={"rounds": 2}, coordination=Coordination(deadline_seconds=0.6))
    assert time.monotonic() - start < 10
    assert [item for item in metrics(tmp_path, "b") if item[0] == "update"] == [("update", 0, "late"), ("update", 1, "late")]


def test_a_lost_site_is_not_waited_for(backbone: Backbone) -> None:
    transport = ScriptedTransport(doors(backbone), lambda name, request, up: None if name == "b" else up)
    transport.lost = {"b"}
    start = time.monotonic()
    settings = job(backbone)
    engine = TransportEngine(transport, SITES)
    Coordinator(engine, settings.task, settings.method, settings.assignment.model).run()
    assert time.monotonic() - start < 15  # the deadline is an hour
    request = UpdateRequest("x", 0, 0, 1, Coefficients(np.zeros((3, 2, 2), dtype=np.float32)))
    last = list(engine.exchange(dict.fromkeys(SITES, request), 3600.0, {}))[-1]
    assert (last.client, last.reply) == ("b", Failure(FailureCode.LOST))


def test_a_reply_that_comes_twice_or_from_nobody_asked_counts_once(backbone: Backbone) -> None:
    transport = ScriptedTransport(doors(backbone), honest)
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
    transport = ScriptedTransport(doors(backbone), lambda name, request, up: None)
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
    engine = TransportEngine(ScriptedTransport(doors(backbone), honest), SITES)
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
    engine = TransportEngine(ScriptedTransport(doors(backbone), honest), SITES)
    run_job(engine, job(backbone), tmp_path / "run", resume=True, observer=lambda event: None)
    assert (tmp_path / "run" / "adapter" / "adapter.json").is_file()


def test_a_run_that_is_there_is_not_started_over(backbone: Backbone, tmp_path: Path) -> None:
    run(backbone, tmp_path, honest)
    with pytest.raises(ConfigError, match="ifedicl flare resume"):
        run(backbone, tmp_path, honest)


def test_the_board_tells_who_answered_and_what_it_cost(backbone: Backbone, tmp_path: Path) -> None:
    facts = run(backbone, tmp_path, spoilt(lambda reply: wire_of(Failure(FailureCode.WRONG_MODEL)))).facts
    assert (facts["round"], facts["rounds"], facts["run"]) == (3, 3, "mood")
    assert facts["train_loss"] > 0
    assert facts["sites"]["a"]["last"] == "answered"
    exchanges = len(metrics(tmp_path, "a"))
    assert facts["sites"]["a"]["carrier_bytes"] == 300 * exchanges
    assert json.loads(json.dumps(facts)) == facts


# The site's door


class Raising:
    name = "x"

    def handle(self, request: Request) -> Reply:
        raise RuntimeError("the row of patient 4711")


def test_whatever_a_site_raises_becomes_a_code_without_text(caplog: pytest.LogCaptureFixture) -> None:
    wire = wire_of(UpdateRequest("x", 0, 0, 1, Coefficients(np.zeros((3, 2, 2), dtype=np.float32))))
    up = answer(bare(Raising()), wire)
    assert reply_of(up) == Failure(FailureCode.INTERNAL)
    assert b"4711" not in up
    assert "4711" in caplog.text  # the owner's own log


@pytest.mark.parametrize("wire", [None, "text", b"", b"\xff" * 100, wire_of(Failure(FailureCode.LATE))])
def test_what_is_no_request_is_refused_with_a_code(wire: object) -> None:
    assert reply_of(answer(bare(Raising()), wire)) == Failure(FailureCode.BAD_REQUEST)


def test_a_site_whose_client_could_not_be_opened_answers_with_a_code() -> None:
    wire = wire_of(UpdateRequest("x", 0, 0, 1, Coefficients(np.zeros((3, 2, 2), dtype=np.float32))))
    assert reply_of(answer(None, wire)) == Failure(FailureCode.INTERNAL)


# Jobs


def test_a_job_holds_settings_and_two_names_of_ours_and_no_code(backbone: Backbone, tmp_path: Path) -> None:
    write_job(job(backbone), tmp_path / "job")
    held = sorted(str(path.relative_to(tmp_path / "job")) for path in (tmp_path / "job").rglob("*") if path.is_file())
    assert held == ["meta.json", "server/config/config_fed_server.json", "site/config/config_fed_client.json"]
    server = json.loads((tmp_path / "job" / held[1]).read_text())
    site = json.loads((tmp_path / "job" / held[2]).read_text())
    assert server["server"]["task_request_interval"] == 0.05
    assert [item["path"] for item in server["workflows"]] == ["ifedicl.flare.controller.RoundsController"]
    assert site["executors"][0]["executor"] == {
        "path": "ifedicl.flare.executor.SiteExecutor",
        "args": {},
    }


def test_a_job_may_ask_sites_to_ask_less_often_and_a_resume_keeps_it(backbone: Backbone, tmp_path: Path) -> None:
    write_job(job(backbone).model_copy(update={"interval": 2.0}), tmp_path / "job")
    with as_resume(tmp_path / "job") as again:
        server = json.loads((again / "server" / "config" / "config_fed_server.json").read_text())
        site = json.loads((again / "site" / "config" / "config_fed_client.json").read_text())
    assert (server["server"]["task_request_interval"], site["default_task_fetch_interval"]) == (2.0, 2.0)


OLD_ROOM = "ifedicl.federation.engines.nvflare"
"""Where the version before had its classes for FLARE."""


def test_a_job_that_an_earlier_version_wrote_is_refused_with_its_remedy(backbone: Backbone, tmp_path: Path) -> None:
    write_job(job(backbone), tmp_path / "job")
    for file in (tmp_path / "job").rglob("*.json"):
        text = file.read_text().replace("ifedicl.flare.controller", f"{OLD_ROOM}.server")
        file.write_text(text.replace("ifedicl.flare.executor", f"{OLD_ROOM}.executor"))
    wanted = r"folder: received .*nvflare\.server\.RoundsController.*Write it again with `ifedicl flare job`"
    with pytest.raises(ConfigError, match=wanted):
        read_job(tmp_path / "job")
    with pytest.raises(ConfigError, match=wanted), as_resume(tmp_path / "job"):
        pass
    with pytest.raises(SystemExit) as stop:
        cli.main(("flare", "submit", str(tmp_path / "job"), "--console", str(tmp_path / "no kit")))
    assert stop.value.code == ConfigError.exit_code


def test_a_kit_that_an_earlier_version_has_started_from_works_on(tmp_path: Path) -> None:
    """The signed part of a kit names no class; the rules beside it, which do, are written at every start."""
    kits = provision(load_project(project(tmp_path, sites='["north"]')), tmp_path / "kits")
    for kit in kits.values():
        assert not [file for file in (kit / "startup").iterdir() if b"ifedicl" in file.read_bytes()]
    (kits["north"] / "client.toml").touch()
    for name, room in (("server", "server.RoundsController"), ("north", "executor.SiteExecutor")):
        rules = kits[name] / "local" / "resources.json"
        rules.write_text(json.dumps({"class_allow_list": [f"{OLD_ROOM}.{room}"], "components": []}))
        processes.command(kits[name])
        written = rules.read_text()
        assert OLD_ROOM not in written
        allowed = names.CONTROLLER if name == "server" else names.EXECUTOR
        assert json.loads(written)["class_allow_list"] == [allowed]


def test_the_classes_that_a_job_names_exist_and_keep_their_arguments(backbone: Backbone) -> None:
    from ifedicl.flare import controller, executor, readmission

    for path, room in (
        (names.CONTROLLER, controller),
        (names.EXECUTOR, executor),
        (names.READMISSION, readmission),
    ):
        module, _, name = path.rpartition(".")
        assert (module, hasattr(room, name)) == (room.__name__, True)
    settings = job(backbone).model_dump(mode="json")
    controller = controller.RoundsController(job=settings, resume=True)
    assert (controller.job, controller.resume) == (settings, True)


def test_a_job_that_resumes_differs_in_that_alone(backbone: Backbone, tmp_path: Path) -> None:
    write_job(job(backbone), tmp_path / "job")
    name = "server/config/config_fed_server.json"
    before = json.loads((tmp_path / "job" / name).read_text())["workflows"][0]["args"]
    with as_resume(tmp_path / "job") as again:
        after = json.loads((again / name).read_text())["workflows"][0]["args"]
    assert (before.pop("resume"), after.pop("resume")) == (False, True)
    assert before == after
    with pytest.raises(ConfigError, match="ifedicl flare job"), as_resume(tmp_path):
        pass


def test_a_job_that_needs_more_sites_than_there_are_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"coordination\.min_clients.*received 4"):
        write_job(job(backbone, coordination=Coordination(min_clients=4)), tmp_path / "job")


_PRIVATE: dict[str, Any] = {
    "holdout": {"selection": 0.0},
    "server": {"update": "gradient", "draw": 1.0},
    "injection": {"from_depth": 0.4},
    "weighting": "examples",
    "rounds": {"select_by": "last"},
    "privacy": {"mode": "private", "noise": {"epsilon": 2.0, "colluders": 1}},
}


def test_a_job_that_promises_noise_is_refused_as_it_is_not_carried(backbone: Backbone) -> None:
    settings = job(backbone)
    values = settings.model_dump(mode="json")
    values["method"] = changed(settings.method, _PRIVATE, "test").model_dump(mode="json")
    with pytest.raises(ConfigError, match="not carried over FLARE yet"):
        validated(JobSettings, values, "job")


def test_a_config_becomes_a_job_with_the_models_fingerprint(llama_folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    settings = load_settings(short_run(tmp_path, llama_folder))
    made = job_settings(settings, ("b", "a"), "night")
    assert (made.name, made.sites, made.fingerprint) == ("night", ("b", "a"), backbone.fingerprint)
    assert (made.layers, made.width) == (backbone.layers, backbone.width)
    assert made.method == settings.method
    with pytest.raises(ConfigError, match="name"):
        job_settings(settings, ("a",), "../elsewhere")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3"])
def test_a_models_shape_is_known_without_loading_it(family: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / family, family)
    loaded, shape = tiny.load(folder), shape_of(ModelSettings(source=str(folder)))
    assert (shape.fingerprint, shape.layers, shape.width) == (loaded.fingerprint, loaded.layers, loaded.width)


# Projects and rules


def project(folder: Path, **changes: str) -> Path:
    lines = {"name": '"p"', "coordinator": '"a@b.org"', "sites": '["a", "b"]'} | changes
    text = "\n".join(f"{name} = {value}" for name, value in lines.items())
    (folder / "project.toml").write_text(text + '\n[server]\nhost = "fl.example.org"\n')
    return folder / "project.toml"


def test_a_project_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    loaded = load_project(project(tmp_path))
    assert (loaded.sites, loaded.server.port, loaded.server.admin_port, loaded.valid_days) == (("a", "b"), 8002, 8003, 360)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sites": '["a", "A"]'}, "the same name"),
        ({"sites": '["../a"]'}, "no names of sites"),
        ({"sites": '["server"]'}, "no names of sites"),
        ({"coordinator": '"me"'}, "e-mail"),
        ({"valid_days": "0"}, "in days"),
        ({"colour": "1"}, "a name that does not exist"),
    ],
)
def test_a_wrong_project_file_is_refused_with_the_field(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_project(project(tmp_path, **changes))


def test_the_rules_let_no_code_in_and_no_log_out(tmp_path: Path) -> None:
    write_site_rules(tmp_path, patience=30.0)
    resources = json.loads((tmp_path / "local" / "resources.json").read_text())
    assert resources["class_allow_list"] == ["ifedicl.flare.executor.SiteExecutor"]
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["allow_log_streaming"] is False
    rights = authorization()["permissions"]
    assert {role["byoc"] for role in rights.values()} == {"none"}
    assert {role["shell_commands"] for role in rights.values()} == {"none"}
    write_server_rules(tmp_path)
    assert "/tmp/nvflare" not in (tmp_path / "local" / "resources.json").read_text()  # noqa: S108


# The command line


def test_without_the_extra_ifedicl_works_and_flare_says_how_to_install_it(tmp_path: Path) -> None:
    """One process for all commands: its imports take seconds."""
    code = """
import sys
sys.modules["nvflare"] = None  # as Python marks what is not there
import ifedicl, ifedicl.runs, ifedicl.cli
for command in sys.argv[1:]:
    try:
        ifedicl.cli.main(command.split())
    except SystemExit as stop:
        print("exit status", stop.code or 0, file=sys.stderr)
"""
    refused = ["flare submit job --console kit", "flare start kit", "flare provision project.toml", "flare job c.toml"]
    done = subprocess.run([sys.executable, "-c", code, *refused, "init c.toml"], capture_output=True, text=True, cwd=tmp_path)
    statuses = [line.split()[-1] for line in done.stderr.splitlines() if line.startswith("exit status")]
    assert statuses == ["2", "2", "2", "2", "0"], done.stderr
    assert done.stderr.count("pip install 'ifedicl[nvflare]'") == len(refused)


def test_logs_show_the_last_lines_of_a_partys_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "log.txt").write_text("four\n")
    cli.app(["flare", "logs", str(tmp_path), "--lines", "2"], standalone_mode=False)
    assert capsys.readouterr().out.split("\n") == ["== log.txt", "two", "three", "== job/log.txt", "four", ""]
    with pytest.raises(StorageError, match="start its party first"):
        cli.app(["flare", "logs", str(tmp_path / "job" / "none")], standalone_mode=False)


def test_a_folder_that_is_no_kit_is_named(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="no start-up kit of ours"):
        cli.app(["flare", "start", str(tmp_path)], standalone_mode=False)


def test_vectors_that_cross_a_post_are_the_sites_own(backbone: Backbone) -> None:
    """The reply is decoded from bytes, never handed over as an object."""
    transport = ScriptedTransport(doors(backbone), honest)
    settings = job(backbone)
    from ifedicl.federation.messages import VectorsRequest

    request = VectorsRequest(settings.task, settings.method, backbone.fingerprint, "")
    (delivery,) = TransportEngine(transport, ("a",)).exchange({"a": request}, 30.0, {})
    own = transport.doors["a"].handle(request)
    assert isinstance(delivery.reply, VectorsReply)
    assert isinstance(own, VectorsReply)
    assert delivery.reply is not own
    np.testing.assert_array_equal(delivery.reply.vectors.means, own.vectors.means)
    assert delivery.bytes_up == len(wire_of(own))


# The console


class PlayedSession:
    """FLARE's admin session, as far as the console uses it."""

    def __init__(self) -> None:
        self.aborted: list[str] = []

    def list_jobs(self, *, reverse: bool) -> list[dict[str, str]]:
        assert reverse
        return [
            {"job_id": "2", "job_name": "night", "status": "RUNNING"},
            {"job_id": "1", "job_name": "day", "status": "FINISHED:COMPLETED"},
        ]

    def do_app_command(self, job_id: str, topic: str, data: object) -> dict[str, int]:
        if job_id == "1":
            raise JobNotRunning("1")
        return {"round": 3}

    def abort_job(self, job_id: str) -> None:
        self.aborted.append(job_id)


def test_the_status_of_a_run_that_the_server_does_not_know_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Played(PlayedSession):
        jobs = True

        def get_connected_client_list(self) -> list[Any]:
            return []

        def list_jobs(self, *, reverse: bool) -> list[dict[str, str]]:
            return super().list_jobs(reverse=reverse) if self.jobs else []

    session = Played()
    monkeypatch.setattr("ifedicl.flare.console.connected", lambda kit: contextlib.nullcontext(Console(session)))
    status = ["flare", "status", "--console", "kit"]
    with pytest.raises(FederationError, match="no job 'dusk'"):
        cli.app([*status, "dusk"], standalone_mode=False)
    cli.app([*status, "day"], standalone_mode=False)
    assert "run day: FINISHED:COMPLETED" in capsys.readouterr().out
    session.jobs = False
    cli.app(status, standalone_mode=False)
    assert capsys.readouterr().out == "connected: no site\n"


def test_the_console_finds_asks_and_stops_a_run_by_its_name() -> None:
    session = PlayedSession()
    opened = Console(session)
    assert opened.job().name == "night"
    assert opened.status(opened.job()) == {"round": 3}
    day = opened.job("day")
    assert (day.is_over, day.is_done, opened.job().is_over) == (True, True, False)
    assert opened.status(day) is None
    opened.stop(opened.job("night"))
    assert session.aborted == ["2"]
    with pytest.raises(FederationError, match="no job 'dusk'"):
        opened.job("dusk")
