"""``ifedicl forget`` on a run of this machine: what it says, and where it is written down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.cli import app
from ifedicl.errors import ConfigError, StorageError
from ifedicl.federation.events import Event, StepStarted
from ifedicl.federation.forgetting import Forgetting
from ifedicl.ledger.ledger import Ledger, read
from ifedicl.settings import load_settings
from tests.support import tiny
from tests.support.run_folders import contents

SECTIONS = """
    [holdout]
    selection = 0.25
    [rounds]
    rounds = 2
    select_by = "last"
    [readout]
    pooled_depths = []
    [calibration]
    local_steps = 1
    batch_size = 2
"""


@pytest.fixture
def finished(llama_folder: Path, tmp_path: Path) -> Path:
    """The config of a finished run of three clients."""
    for seed, name in enumerate(("north", "south", "east")):
        tiny.write_rows(tmp_path / f"{name}.jsonl", tiny.rows(9, seed=seed))
    config = tiny.write_config(tmp_path / "moods.toml", llama_folder, ["north", "south", "east"], SECTIONS)
    done = CliRunner().invoke(app, ["run", str(config), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    return config


def test_a_client_that_left_is_forgotten_and_it_is_written_down(finished: Path, llama_folder: Path, tmp_path: Path) -> None:
    before = Adapter.load(tmp_path / "run")
    tiny.write_config(finished, llama_folder, ["north", "south"], SECTIONS)
    command = ["forget", str(finished), "--client", "east", "--rounds", "1", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "as in a run that never held it" in done.output
    assert "not so: the coefficients" in done.output

    adapter = Adapter.load(tmp_path / "run")
    never = CliRunner().invoke(app, ["run", str(finished), "--out", str(tmp_path / "never")])
    assert never.exit_code == 0, never.output
    np.testing.assert_array_equal(adapter.context.vectors, Adapter.load(tmp_path / "never").context.vectors)
    assert not np.array_equal(adapter.context.vectors, before.context.vectors)
    note = {"round": 2, "clients_left": 1, "clients_changed": 0, "more_rounds": 1}
    assert adapter.provenance["forgotten"] == [note]
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "forgotten after round 2: all text of 1 clients" in card
    assert "east" not in card, "a card names no client"

    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count(">east<") == 1, "of who left, the report has the bytes that it once sent, and nothing else"
    assert report.count(">north<") > 1
    last = read(tmp_path / "run" / "ledgers" / "east.jsonl")[0][-1]
    assert (last.event, last.facts) == ("forgotten", {"share": "all", "number": 1, "exact": False, **note})
    assert _about_it(tmp_path / "run", "east") == ["forget", "forgotten"]
    assert _about_it(tmp_path / "run", "north") == []


def test_a_removed_example_is_forgotten(finished: Path, tmp_path: Path) -> None:
    rows = (tmp_path / "south.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "south.jsonl").write_text("".join(rows[:2] + rows[3:]))
    command = ["forget", str(finished), "--changed", "south", "--rounds", "1", "--out", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["exact"] is False
    assert facts["clients_changed"] == 1
    never = CliRunner().invoke(app, ["run", str(finished), "--out", str(tmp_path / "never")])
    assert never.exit_code == 0, never.output
    ours, theirs = (Adapter.load(tmp_path / name).context.vectors for name in ("run", "never"))
    np.testing.assert_array_equal(ours, theirs)
    (line,) = [entry for entry in read(tmp_path / "run" / "ledgers" / "south.jsonl")[0] if entry.event == "forgotten"]
    assert line.facts["share"] == "removed examples"


STEPS = ("begun", "vectors", "context", "update", "evaluate", "statistics")
"""Events at which a forgetting stops: before and after its first checkpoint, in a round, and while its adapter is made."""


@pytest.mark.parametrize("step", STEPS)
def test_one_that_was_interrupted_is_finished_by_the_same_command(
    step: str, finished: Path, llama_folder: Path, tmp_path: Path
) -> None:
    rows = (tmp_path / "south.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "south.jsonl").write_text("".join(rows[:2] + rows[3:]))
    tiny.write_config(finished, llama_folder, ["north", "south"], SECTIONS)
    settings, forgetting = (
        load_settings(finished),
        Forgetting(frozenset({"north", "south"}), frozenset({"east"}), frozenset({"south"}), 2),
    )
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    runs.forget(settings, tmp_path / "whole", forgetting)

    def die(event: Event) -> None:
        if step == (event.step if isinstance(event, StepStarted) else "begun"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.forget(settings, tmp_path / "run", forgetting, observer=die)
    for name in ("east", "south"):
        assert _about_it(tmp_path / "run", name) == ["forget"]
    runs.forget(settings, tmp_path / "run", forgetting)
    for name in ("east", "south"):
        assert _about_it(tmp_path / "run", name) == ["forget", "forgotten"]
    assert contents(tmp_path / "run" / "adapter") == contents(tmp_path / "whole" / "adapter")


def test_one_that_a_resume_has_finished_is_not_taken_for_an_interrupted_one(finished: Path, tmp_path: Path) -> None:
    settings = load_settings(finished)
    forgetting = Forgetting(frozenset({"north", "south", "east"}), changed=frozenset({"south"}), rounds=1)

    def die(event: Event) -> None:
        if isinstance(event, StepStarted) and event.step == "update":
            raise KeyboardInterrupt

    _keep_rows(tmp_path / "south.jsonl", 8)
    with pytest.raises(KeyboardInterrupt):
        runs.forget(settings, tmp_path / "run", forgetting, observer=die)
    runs.run(settings, tmp_path / "run", resume=True)
    assert _about_it(tmp_path / "run", "south") == ["forget", "forgotten"]
    _keep_rows(tmp_path / "south.jsonl", 7)
    runs.forget(settings, tmp_path / "run", forgetting)
    runs.run(settings, tmp_path / "never")
    ours, theirs = (Adapter.load(tmp_path / name).context.vectors for name in ("run", "never"))
    np.testing.assert_array_equal(ours, theirs)


def test_nothing_is_changed_before_the_ledgers_say_so(
    finished: Path, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_config(finished, llama_folder, ["north", "south"], SECTIONS)

    def full(self: Ledger, event: str, facts: object) -> None:
        raise StorageError("no space is left")

    before = _files(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", full)
        with pytest.raises(StorageError):
            runs.forget(
                load_settings(finished),
                tmp_path / "run",
                Forgetting(frozenset({"north", "south"}), frozenset({"east"}), rounds=1),
            )
    assert _files(tmp_path / "run") == before


def test_what_is_refused_is_in_no_ledger(finished: Path, llama_folder: Path, tmp_path: Path) -> None:
    tiny.write_config(finished, llama_folder, ["north", "south"], SECTIONS)
    before = _files(tmp_path / "run")
    with pytest.raises(ConfigError, match="1 or more"):
        runs.forget(load_settings(finished), tmp_path / "run", Forgetting(frozenset({"north", "south"}), frozenset({"east"})))
    assert _files(tmp_path / "run") == before


def test_the_same_again_is_another_forgetting_once_the_first_has_ended(finished: Path, tmp_path: Path) -> None:
    forgetting = Forgetting(frozenset({"north", "south", "east"}), changed=frozenset({"south"}), rounds=1)
    for kept in (8, 7):
        _keep_rows(tmp_path / "south.jsonl", kept)
        runs.forget(load_settings(finished), tmp_path / "run", forgetting)
    assert _about_it(tmp_path / "run", "south") == ["forget", "forgotten"] * 2
    assert len(Adapter.load(tmp_path / "run").provenance["forgotten"]) == 2


def _keep_rows(file: Path, count: int) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:count]))


def _files(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def _about_it(run: Path, client: str) -> list[str]:
    """The events of a client's lines about its forgetting, in order."""
    events = [entry.event for entry in read(run / "ledgers" / f"{client}.jsonl")[0]]
    return [event for event in events if event in ("forget", "forgotten")]


def test_what_is_still_there_or_never_ran_is_refused(finished: Path, tmp_path: Path) -> None:
    for command, words in (
        (["--client", "east", "--rounds", "1", "--out", str(tmp_path / "run")], "Remove them from"),
        (["--client", "east", "--rounds", "1", "--out", str(tmp_path / "elsewhere")], "a finished run"),
    ):
        done = CliRunner().invoke(app, ["forget", str(finished), *command])
        assert isinstance(done.exception, ConfigError)
        assert words in str(done.exception)
