"""`benchmarks/gpu.py` has no GPU to run on in tests: its tiny form keeps every row, the parity and the profile working."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import gpu
from _gpu_parity import Parity


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("gpu")
    gpu.main(["--tiny", "--pairs", "1", "--examples", "8", "--out", str(out)])
    found: dict[str, object] = json.loads((out / "tiny.json").read_text())
    return found


def test_every_row_of_the_goals_is_measured(facts: dict[str, object]) -> None:
    rows = facts["rows"]
    assert isinstance(rows, dict)
    assert list(rows) == list(gpu.ROWS)
    assert all(row["ratio"]["median"] > 0 for row in rows.values())
    assert facts["left out for time"] == []


def test_a_cpu_computes_what_a_cpu_computes(facts: dict[str, object]) -> None:
    assert facts["parity holds"]
    parity = facts["parity"]
    assert isinstance(parity, dict)
    differences = {kind["what"]: kind["difference"] for kind in parity["kinds"]}
    assert 0 < differences.pop("folded weights against injection") < 1e-5
    assert set(differences.values()) == {0.0}
    assert not Parity("vectors", 2e-4, 1e-4).holds


def test_the_profile_counts_operations_and_says_what_a_cpu_cannot(facts: dict[str, object]) -> None:
    profile, peak = facts["profile"], facts["peak"]
    assert isinstance(profile, dict)
    assert profile["step of 16"]["operations"] > profile["bare pass"]["operations"] > 0
    assert profile["step of 16"]["launches"] == 0
    assert isinstance(peak, dict)
    assert "not measured" in peak


def test_without_a_gpu_the_script_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "torch finds no GPU" in capsys.readouterr().err


def test_rows_that_find_no_time_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "profiled", lambda *_arguments: {})
    gpu.main(["--tiny", "--pairs", "1", "--examples", "4", "--seconds", "0", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "tiny.json").read_text())["left out for time"] == list(gpu.ROWS)
