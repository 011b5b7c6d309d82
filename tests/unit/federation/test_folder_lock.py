"""Two runs in one folder: the second is refused by the process that holds it, and neither writes over the other."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from ifedicl import runs
from ifedicl.errors import ConfigError, StorageError
from ifedicl.federation import folder_lock
from ifedicl.federation.events import Begun, Event
from ifedicl.federation.folder_lock import NAME, held
from ifedicl.federation.run_folder import RunFolder
from ifedicl.settings import load_settings
from tests.support.run_folders import contents, short_run

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_second_holder_is_refused_by_program_and_process_and_the_folder_is_free_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with held(folder):
        with pytest.raises(ConfigError) as caught, held(folder):
            raise AssertionError("both hold it")
        with pytest.raises(ConfigError), RunFolder(folder).held():
            raise AssertionError("both hold it")
        message = str(caught.value)
        assert f"out: received {folder}, in which " in message
        assert f"process {os.getpid()} on " in message
        assert " since " in message
        assert "allowed: a folder in which no run is going on. Wait until it ends" in message
        with held(tmp_path / "other"):
            pass
    with held(folder):
        pass
    assert not folder.exists()
    assert folder.parent.exists()


def test_what_a_killed_process_left_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"pid": 1, "host": "h", "program": "p", "since": 1.0}) + "x" * 99)
    with held(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_file_that_its_holder_has_removed_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = folder_lock._lock
    calls: list[int] = []

    def late(descriptor: int) -> None:
        if not calls:  # the holder ends between open and lock
            (tmp_path / NAME).unlink()
        calls.append(descriptor)
        lock(descriptor)

    monkeypatch.setattr(folder_lock, "_lock", late)
    with held(tmp_path):
        assert len(calls) == 2
        with pytest.raises(ConfigError), held(tmp_path):
            raise AssertionError("both hold it")


@pytest.mark.parametrize("content", ["", "[]", '{"since": "soon"}', "\x00"])
def test_a_holder_that_has_not_written_who_it_is_holds_the_folder_too(tmp_path: Path, content: str) -> None:
    with held(tmp_path):
        (tmp_path / NAME).write_text(content)
        with pytest.raises(ConfigError, match="a program, process unknown on this machine"), held(tmp_path):
            pass


def test_of_many_threads_one_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    inside, most, taken = [], [], []

    def work() -> None:
        for _ in range(60):
            try:
                with held(tmp_path / "run"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    taken.append(1)
            except ConfigError:
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken
    assert max(most) == 1


@pytest.mark.parametrize("below", ["", "deep/run"])
@pytest.mark.parametrize("kind", ["dangling", "loop", "file", "proc"])
def test_a_folder_that_cannot_be_made_is_an_error_and_not_waited_for(tmp_path: Path, kind: str, below: str) -> None:
    place = tmp_path / kind
    said = f"{kind} is a file. Choose a folder" if kind == "file" else f"{kind} is a link to .*, which does not exist. Make"
    if kind == "file":
        place.write_text("")
    elif kind == "proc":
        place, said = Path("/proc/ifedicl"), "cannot write /proc/ifedicl"
    else:
        place.symlink_to(place if kind == "loop" else tmp_path / "unmounted" / "disk")
    with pytest.raises(StorageError, match=said), held(place / below):
        raise AssertionError("it is held")


def test_where_the_file_system_has_no_locks_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(folder_lock, "_lock", refuse)
    with held(tmp_path), held(tmp_path):
        (tmp_path / "x").write_text("x")


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_in_a_folder_in_which_one_is_going_on_is_refused_and_changes_nothing(
    llama_folder: Path, tmp_path: Path, resume: bool
) -> None:
    settings = load_settings(short_run(tmp_path, llama_folder))
    refused: list[str] = []

    def again(event: Event) -> None:
        if not isinstance(event, Begun) and not refused and (not resume or (folder / "checkpoint").exists()):
            before = contents(folder / "checkpoint") if resume else {}
            with pytest.raises(ConfigError) as caught:
                runs.run(settings, folder, resume=resume)
            refused.append(str(caught.value))
            assert (contents(folder / "checkpoint") if resume else {}) == before

    folder = tmp_path / "run"
    result = runs.run(settings, folder, observer=again)
    assert f"process {os.getpid()}" in refused[0]
    assert result.federated is not None
    alone = runs.run(settings, tmp_path / "alone")
    assert alone.federated is not None
    assert (folder / "adapter" / "adapter.safetensors").read_bytes() == (
        tmp_path / "alone" / "adapter" / "adapter.safetensors"
    ).read_bytes()


def test_a_run_that_began_while_another_one_ended_does_not_replace_it(llama_folder: Path, tmp_path: Path) -> None:
    settings = load_settings(short_run(tmp_path, llama_folder))
    folder = RunFolder(tmp_path / "run")
    folder.check(resume=False, more_rounds=0)  # both have looked
    runs.run(settings, folder.path)
    before = contents(folder.adapter)
    from ifedicl.federation.driver import RunOptions

    def never(options: RunOptions) -> None:
        raise AssertionError("it ran")

    with pytest.raises(ConfigError, match="a folder without a run in it"):
        folder.carry_out(never, RunOptions(), folder.journal(settings.task, ["a"]))  # type: ignore[arg-type]
    assert contents(folder.adapter) == before


def test_a_stored_answer_is_not_written_into_the_folder_of_a_run_that_is_going_on(llama_folder: Path, tmp_path: Path) -> None:
    settings, cache = load_settings(short_run(tmp_path, llama_folder)), runs.Cache(str(tmp_path / "tasks.sqlite"), "clinics")
    assert runs.run(settings, tmp_path / "first", cache=cache).federated is not None
    with held(tmp_path / "second"):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            runs.run(settings, tmp_path / "second", cache=cache)
        assert not (tmp_path / "second" / "adapter").exists()
    assert runs.run(settings, tmp_path / "second", cache=cache).federated is None
    assert (tmp_path / "second" / "adapter").is_dir()
