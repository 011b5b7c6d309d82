"""Every method of the benchmark on the real model, killed once on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from ifedicl.bench.methods import METHODS
from ifedicl.demo.fetch import demo_model, demo_texts

pytestmark = pytest.mark.real


SMALLER = {"pool = 36": "pool = 18", "test_rows = 15": "test_rows = 3", "rounds = 2": "rounds = 1"}


def smaller_smoke_plan() -> str:
    """The shipped smoke plan with a third of its work."""
    text = (files("ifedicl.bench") / "plans" / "smoke.toml").read_text()
    for shipped, here in SMALLER.items():
        assert text.count(f"\n{shipped}\n") == 1
        text = text.replace(shipped, here)
    return text


def test_every_method_runs_and_a_killed_plan_goes_on_without_repeating_a_cell(tmp_path: Path) -> None:
    demo_model()
    demo_texts()
    plan = tmp_path / "plan.toml"
    plan.write_text(smaller_smoke_plan())
    command = [sys.executable, "-m", "ifedicl.cli", "bench", str(plan), "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        assert first.stdout is not None
        lines = [first.stdout.readline() for _ in range(4)]
        os.killpg(first.pid, signal.SIGKILL)
    assert "zero-shot" in lines[0]
    kept = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(kept) >= 4
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [json.dumps(record) for record in records[: len(kept)]] == kept
    assert sorted(record["cell"]["method"] for record in records) == sorted(METHODS)
    assert "zero-shot, " not in done.stdout.partition("###")[0]
    assert len([line for line in done.stdout.splitlines() if ": accuracy " in line]) == len(METHODS) - len(kept)
    by_method = {record["cell"]["method"]: record for record in records}
    ours, lora = by_method["ifed-icl"], by_method["fedavg-lora"]
    assert sum(lora["bytes_up"].values()) > 10 * sum(ours["bytes_up"].values())
    assert ours["bytes_up"].keys() < by_method["ifed-icl-subspace"]["bytes_up"].keys(), "a readout's sums cross too"
    for name in ("results.md", "results.html"):
        assert "ifed-icl" in (tmp_path / name).read_text()
