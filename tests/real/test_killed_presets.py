"""Every shipped preset, with the upper layers only: killed with SIGKILL at ten moments, it ends byte for byte the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ifedicl.federation.run_folder import RunFolder
from ifedicl.settings import ModelSettings, load_preset, load_settings, presets
from tests.support.run_folders import contents, history, write_run

pytestmark = pytest.mark.soak
MOMENTS = 10
ROWS = {"a": 12, "b": 9, "c": 14}


def _config(folder: Path, model: Path, preset: str, sections: str = "") -> Path:
    """A config of this preset that injects the upper layers only."""
    method = load_preset(preset)
    upper = "" if method.injection.from_depth else "[injection]\nfrom_depth = 0.5\n"
    config = write_run(folder, model, ROWS, upper + sections, seed=5, weighting=method.weighting)
    config.write_text(f'preset = "{preset}"\n{config.read_text()}')
    assert load_settings(config).injection.from_depth > 0
    return config


def _killed(folder: Path, config: Path) -> dict[str, Any]:
    """What happened to a run that was killed at ten moments; its folder must be that of a run that nobody killed."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
    whole, broken = folder / "whole", folder / "broken"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_at_events", str(config), str(whole), str(broken), str(MOMENTS)],
        capture_output=True, text=True, env=environment, timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["killed"] == [True] * MOMENTS, report
    assert len(set(report["events"])) == MOMENTS, report
    assert set(contents(RunFolder(whole).adapter)) == {"adapter.json", "adapter.safetensors", "README.md"}
    assert contents(RunFolder(broken).adapter) == contents(RunFolder(whole).adapter)
    assert history(broken) == history(whole)
    return report


@pytest.mark.parametrize("preset", presets())
def test_a_preset_killed_at_ten_moments_ends_with_the_same_adapter_byte_for_byte(
    tmp_path: Path, llama_folder: Path, preset: str
) -> None:
    report = _killed(tmp_path, _config(tmp_path, llama_folder, preset))
    assert len(set(report["rounds"])) > min(load_preset(preset).rounds.rounds, 4), report


@pytest.mark.real
def test_so_does_the_default_preset_with_a_real_model(tmp_path: Path, model: ModelSettings) -> None:
    report = _killed(tmp_path, _config(tmp_path, Path(model.source), "subspace", "[rounds]\nrounds = 4\nevaluate_every = 2\n"))
    assert len(set(report["rounds"])) > 2, report
