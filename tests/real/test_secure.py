"""Secure mode with the real model, and killed for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ifedicl import Backbone, Method, ModelSettings, runs
from ifedicl.demo import story
from ifedicl.demo.fetch import demo_places
from ifedicl.federation import checkpoint
from ifedicl.federation.messages import VectorsRequest
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.secure.quantised import SUMS
from ifedicl.settings import TOGETHER, changed
from tests.support.run_folders import SECURE, contents, history, run_of_four

SHORT = {
    "weighting": "examples",
    "injection": {"from_depth": 0.7},
    "rounds": {"rounds": 1},
    "calibration": {"batch_size": 4, "local_steps": 1},
}
KILLS = 3


@pytest.mark.real
def test_the_real_model_in_secure_mode_gives_the_open_runs_sums_and_learns_as_much(
    model: ModelSettings, real_backbone: Backbone
) -> None:
    examples = {name: place.pool for name, place in demo_places(pool=12, test=3, seed=0).items()}
    plain = changed(Method(), SHORT, "test")
    outcomes = []
    for method in (plain, changed(plain, {"privacy": {"mode": "secure", "min_examples": 4}}, "test")):
        clients = runs.simulate(real_backbone, story.TASK, examples)
        outcomes.append(runs.federate(clients, model, story.TASK, method).outcome)
    open_run, secure_run = outcomes
    step = SUMS[VectorsRequest].grid.step
    assert np.abs(secure_run.context.vectors - open_run.context.vectors).max() < step
    held_out = [outcome.state.history[-1].held_out for outcome in outcomes]
    assert held_out[0] is not None
    assert held_out[1] is not None
    assert held_out[1].examples == held_out[0].examples
    assert held_out[1].loss == pytest.approx(held_out[0].loss, rel=0.05)
    assert set(secure_run.state.client_vectors) == {TOGETHER}


def test_a_secure_run_that_was_killed_ends_with_the_same_adapter_byte_for_byte(tmp_path: Path, llama_folder: Path) -> None:
    config = run_of_four(tmp_path, llama_folder, SECURE.replace("rounds = 2", "rounds = 6"))
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_run", str(config), str(whole), str(broken), str(KILLS), "0"],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["killed"][:KILLS] == [True] * KILLS, report
    assert contents(RunFolder(broken).adapter) == contents(RunFolder(whole).adapter)
    assert history(broken) == history(whole)
    saved = checkpoint.load(RunFolder(broken).checkpoint)
    assert saved is not None
    assert set(saved.client_vectors) == {TOGETHER}
