"""The benchmark's smoke plan on the real model: every method, killed once on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ifedicl.bench.methods import METHODS
from ifedicl.demo.fetch import demo_model, demo_texts

pytestmark = pytest.mark.real


def test_smoke_runs_every_method_and_goes_on_after_a_kill_without_repeating_a_cell(tmp_path: Path) -> None:
    demo_model()
    demo_texts()
    command = [sys.executable, "-m", "ifedicl.cli", "bench", "smoke", "--out", str(tmp_path)]
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
