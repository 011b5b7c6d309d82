"""Progress where standard error is no terminal: plain lines from the first seconds on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ifedicl.federation.events import Delivered, RoundDone, StepStarted
from ifedicl.federation.state import RoundRecord, Traffic
from ifedicl.metrics import Tally
from ifedicl.progress import CountLines, RoundLines
from tests.support import tiny
from tests.support.command_line import run

TIME = re.compile(r"\d\d:\d\d:\d\d ")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was written to standard error, without the times of day."""
    written = capsys.readouterr().err.splitlines()
    assert all(TIME.match(line) for line in written)
    return [TIME.sub("", line) for line in written]


def test_a_round_is_a_line_with_losses_accuracy_bytes_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([100.0, 160.0, 220.0])
    observer = RoundLines("mood", clock=lambda: next(seconds))
    tally = {"a": Tally(10, 7, 5.0)}
    observer(StepStarted("vectors", 0, 3))
    for number in (1, 2, 3):
        observer(StepStarted("update", number - 1, 3))
        observer(Delivered(Traffic("a", "update", number - 1, 1500, 500, 1.0)))
        observer(RoundDone(RoundRecord(number, ("a",), 0.25, tally if number != 2 else {}), 3))
    assert lines(capsys) == [
        "mood: stage 1: context vectors, 3 clients",
        "mood: round 1 of 3, training loss 0.250, held-out loss 0.500, accuracy 70.0%, 2 KB so far, about 2 minutes left",
        "mood: round 2 of 3, training loss 0.250, 4 KB so far, about 60 seconds left",
        "mood: round 3 of 3, training loss 0.250, held-out loss 0.500, accuracy 70.0%, 6 KB so far",
    ]


def test_a_count_writes_at_most_a_line_in_half_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 1.0, 31.0, 32.0, 62.0, 90.0])
    count = CountLines("texts", 5, clock=lambda: next(seconds))
    for _ in range(5):
        count(1)
    assert lines(capsys) == ["texts: 2 of 5, about 46 seconds left", "texts: 4 of 5, about 16 seconds left"]


def test_a_run_whose_output_is_no_terminal_says_that_it_goes_on(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    for site in ("a", "b"):
        tiny.write_rows(tmp_path / f"{site}.jsonl", tiny.rows(12, seed=len(site)))
    config = tiny.write_config(tmp_path / "c.toml", llama_folder, ("a", "b"), "[rounds]\nrounds = 2\n")
    assert run("run", config, "--out", tmp_path / "run", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rounds"] == 2
    said = [TIME.sub("", line) for line in printed.err.splitlines()]
    assert said[0].startswith("mood: loading the model")
    assert sum(line.startswith("mood: round ") for line in said) == 2
