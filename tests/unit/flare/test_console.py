"""The commands of ``ifedicl flare`` and FLARE's console."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from nvflare.fuel.flare_api.api_spec import JobNotRunning, NoConnection

from ifedicl import cli
from ifedicl.errors import FederationError, StorageError
from ifedicl.federation.failure_words import FAILURE_WORDS
from ifedicl.federation.messages import FailureCode
from ifedicl.flare.console import Console
from ifedicl.flare.names import RESULT

# The command line


LINES = """2026-11-30 12:34:38,642 - executor - INFO - model loaded
2026-11-30 12:34:38,643 - ClientRunner - ERROR - FLARE says something
  with a second line
2026-11-30 12:34:38,699 - guard - WARNING - client b refuses a job request
2026-11-30 12:34:38,700 - executor - ERROR - could not be opened
Traceback (most recent call last):
ValueError: row 3
2026-11-30 12:34:38,701 - Cell - INFO - more of FLARE
"""


@pytest.mark.mistake
def test_logs_show_our_own_last_lines_with_their_tracebacks_and_with_all_those_of_flare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").write_text(LINES)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "log.txt").write_text("2026-11-30 12:34:38,699 - recorder - WARNING - a line\n")
    cli.app(["flare", "logs", str(tmp_path), "--lines", "4"], standalone_mode=False)
    shown = capsys.readouterr().out.splitlines()
    ours = [line for line in LINES.splitlines() if "FLARE" not in line and "second" not in line]
    assert shown[:5] == ["== log.txt", *ours[1:]]
    assert shown[5] == "== job/log.txt"
    assert "--all" in shown[7]
    cli.app(["flare", "logs", str(tmp_path), "--lines", "2", "--all"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[:3] == ["== log.txt", *LINES.splitlines()[-2:]]
    with pytest.raises(StorageError, match="Start the kit's party first"):
        cli.app(["flare", "logs", str(tmp_path / "job" / "none")], standalone_mode=False)


def test_a_folder_that_is_no_kit_is_named(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="not a start-up kit"):
        cli.app(["flare", "start", str(tmp_path)], standalone_mode=False)


# The console


SITE = {"last": "answered", "step": "job", "seconds": 1.0, "bytes_down": 10, "bytes_up": 20, "carrier_bytes": 30}


class PlayedSession:
    """FLARE's admin session, as far as the console uses it."""

    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.result: dict[str, Any] = {"error": "too few sites", "sites": {"a": SITE | {"last": "refused"}}}

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

    def download_job_result(self, job_id: str, destination: str) -> str:
        """The folder of a finished job; FLARE prints meanwhile."""
        print("downloading")
        folder = Path(destination) / job_id / "workspace"
        folder.mkdir(parents=True)
        (folder / RESULT).write_text(json.dumps(self.result))
        (folder / "log.txt").write_text(LINES)
        return str(folder)

    def abort_job(self, job_id: str) -> None:
        self.aborted.append(job_id)


def test_an_answer_that_is_lost_ends_no_following(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE's server says that it has no connection while the process of a job starts or ends."""

    class Played(PlayedSession):
        asked = 0

        def list_jobs(self, *, reverse: bool) -> list[dict[str, str]]:
            self.asked += 1
            if self.asked in {1, 3}:
                raise NoConnection("lost")
            first, *rest = super().list_jobs(reverse=reverse)
            return [first | {"status": "RUNNING" if self.asked < 5 else "FINISHED:COMPLETED"}, *rest]

        def do_app_command(self, job_id: str, topic: str, data: object) -> dict[str, int]:
            if self.asked < 4:
                raise NoConnection("lost")
            return super().do_app_command(job_id, topic, data)

    monkeypatch.setattr("ifedicl.flare.console._POLL_SECONDS", 0.0)
    console = Console(Played())
    assert [facts["round"] for facts in console.rounds(console.job())] == [3]
    monkeypatch.setattr("ifedicl.flare.console._PATIENCE_SECONDS", 0.0)
    with pytest.raises(FederationError, match=r"does not answer any more \(lost\)\. A job that runs goes on"):
        Console(Played()).jobs()


def test_the_status_of_a_run_that_the_server_does_not_know_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Played(PlayedSession):
        jobs = True

        def get_connected_client_list(self) -> list[Any]:
            return []

        def list_jobs(self, *, reverse: bool) -> list[dict[str, str]]:
            return super().list_jobs(reverse=reverse) if self.jobs else []

    session = Played()
    monkeypatch.setattr("ifedicl.flare.console.connected", lambda kit: contextlib.nullcontext(Console(session)))
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "signature.json").touch()
    status = ["flare", "status", "--console", str(tmp_path)]
    with pytest.raises(FederationError, match="no job 'dusk'"):
        cli.app([*status, "dusk"], standalone_mode=False)
    cli.app([*status, "day"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "run day: FINISHED:COMPLETED" in said
    assert "cause: too few sites" in said
    assert "a: refused (job) in 1.0 s: its owner's rules do not allow this" in said
    assert "downloading" not in said
    session.result = {
        "error": None,
        "sites": {"a": SITE},
        "round": 3,
        "rounds": 3,
        "seconds": 9.0,
        "chosen_round": 2,
        "held_out_loss": 0.5,
        "held_out_accuracy": 0.75,
        "zero_shot_accuracy": 0.5,
        "gate": {"open": False},
        "adapter": "/srv/runs/day/adapter",
    }
    cli.app([*status, "day"], standalone_mode=False)
    said = capsys.readouterr().out
    for figure in ("round 2 was chosen", "loss 0.500, accuracy 75.0%; the raw model 50.0%", "closed", "/srv/runs/day/adapter"):
        assert figure in said
    cli.app([*status, "day", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["result"] == session.result
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


@pytest.mark.mistake
def test_the_console_shows_the_servers_log_of_a_finished_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "signature.json").touch()
    (tmp_path / "startup" / "fed_admin.json").touch()
    session = PlayedSession()
    session.list_jobs = lambda *, reverse: PlayedSession.list_jobs(session, reverse=reverse)[1:]  # type: ignore[method-assign]
    monkeypatch.setattr("ifedicl.flare.console.connected", lambda kit: contextlib.nullcontext(Console(session)))
    cli.app(["flare", "logs", str(tmp_path)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "client b refuses a job request" in said
    assert "more of FLARE" not in said


def test_every_code_has_its_words() -> None:
    assert set(FAILURE_WORDS) == set(FailureCode)
