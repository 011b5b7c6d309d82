"""The file of a run: it grows while the run goes on, and ends as what is certain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ifedicl import runs
from ifedicl.errors import StorageError
from ifedicl.federation import checkpoint
from ifedicl.federation.events import Begun, Event
from ifedicl.federation.journal import Journal
from ifedicl.federation.run_folder import RunFolder
from ifedicl.settings import RunSettings, validated
from tests.support import tiny
from tests.support.stopping import StopError, stop_after


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]


@pytest.fixture
def settings(llama_folder: Path, tmp_path: Path) -> RunSettings:
    for number, name in enumerate(("north", "south")):
        tiny.write_rows(tmp_path / f"{name}.jsonl", tiny.rows(12, seed=number))
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("north", "south")}
    sections = {
        "task": tiny.TASK.model_dump(),
        "model": {"source": str(llama_folder), "dtype": "float32", "device": "cpu"},
        "data": {"clients": data, "test": data["north"]},
        "rounds": {"rounds": 2},
        "calibration": {"batch_size": 2, "local_steps": 1},
    }
    return validated(RunSettings, sections, "test")


def test_the_file_grows_while_the_run_goes_on(settings: RunSettings, tmp_path: Path) -> None:
    seen: list[list[dict[str, Any]]] = []

    def observer(event: Event) -> None:
        seen.append(read(tmp_path / "run"))

    runs.run(settings, tmp_path / "run", observer=observer)
    assert [len(lines) for lines in seen] == list(range(1, len(seen) + 1))  # the first line, then one an event
    assert seen[0][0] == {
        "event": "run",
        "task": "mood",
        "labels": ["good", "bad"],
        "label_words": ["good", "bad"],
        "clients": ["north", "south"],
    }
    assert seen[1][1] == {"event": "step", "step": "job", "round": 0, "clients": 2}
    steps = list(dict.fromkeys(line["step"] for line in seen[-1] if line["event"] == "step"))
    assert steps == ["job", "vectors", "context", "evaluate", "update"]
    first = next(line for line in seen[-1] if line["event"] == "round")
    assert (first["round"], first["rounds"], first["clients"]) == (1, 2, ["north", "south"])
    assert first["held_out"]["examples"] > 0


def test_it_ends_with_what_came_out_and_the_figures_of_the_test_file(settings: RunSettings, tmp_path: Path) -> None:
    result = runs.run(settings, tmp_path / "run")
    lines = read(tmp_path / "run")
    assert [line["event"] for line in lines][-3:] == ["finished", "test", "test"]
    finished, zero_shot, adapter = lines[-3:]
    assert result.federated is not None
    assert finished["chosen_round"] == result.federated.outcome.chosen_round
    assert (zero_shot["name"], adapter["name"]) == ("zero-shot", "adapter")
    assert sum(map(sum, adapter["confusion"])) == adapter["examples"] == 12
    assert [line["event"] for line in lines].count("zero_shot") == 1


def test_a_resumed_run_tells_nothing_twice_and_no_torn_line_stays(settings: RunSettings, tmp_path: Path) -> None:
    runs.run(settings, tmp_path / "whole")

    with pytest.raises(StopError):
        runs.run(settings, tmp_path / "run", observer=stop_after(1))
    with RunFolder(tmp_path / "run").metrics.open("a") as file:
        file.write('{"event": "exch')
    at_resume: list[list[dict[str, Any]]] = []
    runs.run(settings, tmp_path / "run", resume=True, observer=lambda event: at_resume.append(read(tmp_path / "run")))
    saved = checkpoint.load(RunFolder(tmp_path / "run").checkpoint)
    assert saved is not None
    assert [line["round"] for line in at_resume[0] if line["event"] == "round"] == [1]

    def rounds(folder: str) -> list[dict[str, Any]]:
        return [line for line in read(tmp_path / folder) if line["event"] == "round"]

    assert rounds("run") == rounds("whole")


def test_exchanges_stand_before_the_round_that_they_belong_to(settings: RunSettings, tmp_path: Path) -> None:
    runs.run(settings, tmp_path / "run")
    done = 0
    for line in read(tmp_path / "run"):
        if line["event"] == "exchange":
            assert line["round"] == done
        elif line["event"] == "round":
            done = line["round"]
    assert done == 2


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        Journal(tmp_path / "metrics.jsonl", tiny.TASK, ["north"])(Begun(None))
