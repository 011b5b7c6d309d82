"""The commands of ``ifedicl flare`` and FLARE's console."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from nvflare.fuel.flare_api.api_spec import JobNotRunning

from ifedicl import cli
from ifedicl.errors import FederationError, StorageError
from ifedicl.flare.console import Console

# The command line


def test_logs_show_the_last_lines_of_a_partys_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "log.txt").write_text("four\n")
    cli.app(["flare", "logs", str(tmp_path), "--lines", "2"], standalone_mode=False)
    assert capsys.readouterr().out.split("\n") == ["== log.txt", "two", "three", "== job/log.txt", "four", ""]
    with pytest.raises(StorageError, match="Start the kit's party first"):
        cli.app(["flare", "logs", str(tmp_path / "job" / "none")], standalone_mode=False)


def test_a_folder_that_is_no_kit_is_named(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="not a start-up kit"):
        cli.app(["flare", "start", str(tmp_path)], standalone_mode=False)


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
