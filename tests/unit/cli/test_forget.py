"""``ifedicl forget`` on a run of this machine: what it says, and where it is written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ifedicl.adapter import Adapter
from ifedicl.cli import app
from ifedicl.errors import ConfigError
from ifedicl.ledger.ledger import read
from tests.support import tiny

SECTIONS = """
    [holdout]
    selection = 0.25
    [rounds]
    rounds = 2
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
    assert (last.event, last.facts) == ("forgotten", {"share": "all", "exact": False, **note})
    assert [entry.event for entry in read(tmp_path / "run" / "ledgers" / "north.jsonl")[0]].count("forgotten") == 0


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
    assert read(tmp_path / "run" / "ledgers" / "south.jsonl")[0][-1].facts["share"] == "removed examples"


def test_what_is_still_there_or_never_ran_is_refused(finished: Path, tmp_path: Path) -> None:
    for command, words in (
        (["--client", "east", "--rounds", "1", "--out", str(tmp_path / "run")], "Remove them from"),
        (["--client", "east", "--rounds", "1", "--out", str(tmp_path / "elsewhere")], "a finished run"),
    ):
        done = CliRunner().invoke(app, ["forget", str(finished), *command])
        assert isinstance(done.exception, ConfigError)
        assert words in str(done.exception)
