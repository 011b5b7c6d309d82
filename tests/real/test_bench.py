"""Methods of the benchmark on the real model, killed once on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from ifedicl.bench.methods import METHODS
from ifedicl.demo.fetch import demo_model, demo_texts
from tests.support.command_line import run

pytestmark = pytest.mark.real


SMALLER = {"pool = 36": "pool = 18", "test_rows = 15": "test_rows = 3", "rounds = 2": "rounds = 1"}
SMALLEST = {**SMALLER, "pool = 36": "pool = 9"}
FEW = ("zero-shot", "ifed-icl", "ifed-icl-subspace", "fedavg-lora", "ridge-probe")
"""One method of each kind: the frozen model, ours in two forms, the usual fine-tuning, and a closed form."""


def write_smoke_plan(path: Path, methods: Sequence[str], smaller: Mapping[str, str]) -> None:
    """The shipped smoke plan with less work."""
    text = (files("ifedicl.bench") / "plans" / "smoke.toml").read_text()
    for shipped, here in smaller.items():
        assert text.count(f"\n{shipped}\n") == 1
        text = text.replace(shipped, here)
    text, lists = re.subn(r"methods = \[[^]]*\]", f"methods = {json.dumps(methods)}", text)
    assert lists == 1
    path.write_text(text)


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run_killed_and_resumed(folder: Path, capsys: pytest.CaptureFixture[str], kill_after: int) -> dict[str, dict[str, Any]]:
    """Kill the plan in ``folder`` after a number of cells, run the rest, and give the records by method."""
    demo_model()
    demo_texts()
    arguments = ["bench", str(folder / "plan.toml"), "--out", str(folder)]
    command = [sys.executable, "-m", "ifedicl.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        assert first.stdout is not None
        lines = [first.stdout.readline() for _ in range(kill_after)]
        os.killpg(first.pid, signal.SIGKILL)
    assert "zero-shot" in lines[0]
    kept = records_of(folder)
    assert len(kept) >= kill_after
    capsys.readouterr()
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    records = records_of(folder)
    assert records[: len(kept)] == kept
    assert "zero-shot, " not in printed.partition("###")[0]
    assert len([line for line in printed.splitlines() if ": accuracy " in line]) == len(records) - len(kept) > 0
    for name in ("results.md", "results.html"):
        assert "ifed-icl" in (folder / name).read_text()
    return {record["cell"]["method"]: record for record in records}


def check_bytes(by_method: Mapping[str, Mapping[str, Any]]) -> None:
    ours, lora = by_method["ifed-icl"], by_method["fedavg-lora"]
    assert sum(lora["bytes_up"].values()) > 10 * sum(ours["bytes_up"].values())
    assert ours["bytes_up"].keys() < by_method["ifed-icl-subspace"]["bytes_up"].keys(), "a readout's sums cross too"


def test_a_method_of_each_kind_runs_and_a_killed_plan_goes_on_without_repeating_a_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_smoke_plan(tmp_path / "plan.toml", FEW, SMALLEST)
    by_method = run_killed_and_resumed(tmp_path, capsys, kill_after=2)
    assert sorted(by_method) == sorted(FEW)
    check_bytes(by_method)


@pytest.mark.soak
def test_every_method_runs_and_a_killed_plan_goes_on_without_repeating_a_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_smoke_plan(tmp_path / "plan.toml", tuple(METHODS), SMALLER)
    by_method = run_killed_and_resumed(tmp_path, capsys, kill_after=4)
    assert sorted(by_method) == sorted(METHODS)
    check_bytes(by_method)
