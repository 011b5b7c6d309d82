"""``--min-confidence``: answers that are too unsure are withheld."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import run


def test_an_answer_below_the_least_confidence_is_withheld(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = str(finished / "adapter")
    assert run("classify", adapter, "a", "fresh bread", "--json") == 0
    sure = sorted(max(json.loads(line)["probabilities"].values()) for line in capsys.readouterr().out.splitlines())
    least = sum(sure) / 2
    assert run("classify", adapter, "a", "fresh bread", "--json", "--min-confidence", str(least)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["label"] is None for line in lines] == [max(line["probabilities"].values()) < least for line in lines]
    assert sum(line["label"] is None for line in lines) == 1
    assert run("classify", adapter, "a", "--min-confidence", "1") == 0
    label, probability, text = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (label, text) == ("", "a")
    assert 0 < float(probability) < 1


def test_evaluate_states_coverage_and_accuracy_among_the_answered(
    finished: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "evaluate", str(finished / "adapter"), str(config.parent / "test.jsonl"), "--min-confidence"
    assert run(*command, "0.5", "--json") == 0
    facts = json.loads(capsys.readouterr().out)["adapter"]
    assert facts["answered"] == {"least": 0.5, "examples": 12, "coverage": 1.0, "accuracy": facts["accuracy"]}
    assert 0 <= facts["calibration_error"] <= 1
    assert run(*command, "1") == 0
    assert "adapter at a confidence of 1 or more: 0.0% answered (0)" in capsys.readouterr().out
