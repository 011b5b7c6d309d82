"""The real thing: a ledger whose writer is killed, and liars among clients of the real model."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _liars import LIES, Colluding
from ifedicl import Backbone, ModelSettings, load_preset, runs
from ifedicl.demo.fetch import demo_places
from ifedicl.demo.story import TASK
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.ledger.entries import Head
from ifedicl.ledger.ledger import Ledger, read
from ifedicl.settings import changed

KILLS = 8


def test_a_ledger_whose_writer_is_killed_again_and_again_loses_no_line_that_it_reported(tmp_path: Path) -> None:
    path, draw = tmp_path / "ledger.jsonl", random.Random(0)  # noqa: S311
    reported: list[Head] = []
    for _ in range(KILLS):
        command = [sys.executable, "-m", "tests.support.appending", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(draw.uniform(0.0, 0.05))
            writer.send_signal(signal.SIGKILL)
            lines = [first, *writer.stdout.read().splitlines(keepends=True)]
        reported += [Head(int(line.split()[0]), line.split()[1]) for line in lines if line.endswith("\n")]
    ledger = Ledger(path, "clinic")
    assert all(ledger.knows(head) for head in reported)
    entries, torn = read(path)
    assert torn == b""
    assert len(entries) >= len(reported) >= KILLS


# Liars

LIARS = ("client-03", "client-08")


@pytest.mark.soak
@pytest.mark.real
def test_two_of_ten_liars_sink_a_mean_and_not_a_median(real_backbone: Backbone, model: ModelSettings) -> None:
    """Zero-shot of the real model is the line; the adapter is as its round was chosen, no gate before it."""
    places = demo_places(pool=15, test=6, seed=0).values()
    rows = [row for place in places for row in place.pool]
    test = [row for place in places for row in place.test]
    examples = {f"client-{number:02d}": rows[number::10] for number in range(10)}

    def loss(adapter: Any) -> float:
        logs = adapter.classifier(real_backbone).log_probabilities([row.text for row in test])
        own = -logs[np.arange(len(test)), [TASK.index(row.label) for row in test]]
        return float(np.clip(np.nan_to_num(own, nan=100.0), 0.0, 100.0).mean())

    def trained(sections: dict[str, Any]) -> float:
        short = {
            "holdout": {"selection": 0.2, "gate": 0.0},
            "injection": {"from_depth": 0.5},
            "calibration": {"batch_size": 3, "local_steps": 1, "learning_rate": 0.1},
            "rounds": {"rounds": 2, "evaluate_every": 2},
            "readout": False,  # one would read labels off whatever the liars left
        }
        method = changed(load_preset("demo"), {**short, **sections}, "test")
        clients = runs.simulate(real_backbone, TASK, examples)
        lying = lambda owners: Colluding(LocalEngine(owners), LIARS, updates=LIES["flipped, a thousandfold"])  # noqa: E731
        return loss(runs.federate(clients, model, TASK, method, engine=lying).adapter)

    raw = loss(runs.zero_shot_adapter(real_backbone, model, TASK))
    assert trained({}) > raw + 0.5
    assert trained({"robust": {"rule": "median"}}) < raw - 0.1
