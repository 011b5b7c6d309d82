"""Bytes, memory and the analytic table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl import runs
from ifedicl.bench.analytic import table_1
from ifedicl.bench.costs import Meter, PeakMemory
from ifedicl.bench.methods import METHODS
from ifedicl.bench.methods.lora import lora_layers
from ifedicl.bench.setup import Setup
from ifedicl.federation.messages import encode

# --- costs -------------------------------------------------------------------------------------------------------------


def test_bytes_of_a_cell_are_the_bytes_that_the_engine_counted(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[runs.Federated] = []

    def kept(*arguments: Any, **options: Any) -> runs.Federated:
        outcomes.append(federate(*arguments, **options))
        return outcomes[-1]

    federate = runs.federate
    monkeypatch.setattr(runs, "federate", kept)
    costs = METHODS["ifed-icl"].run(setup).costs
    traffic = outcomes[0].outcome.state.traffic
    for side, counted in (("bytes_up", costs.bytes_up), ("bytes_down", costs.bytes_down)):
        for stage, mean in counted.items():
            assert mean == sum(getattr(item, side) for item in traffic if item.step == stage) / 3
        assert sum(counted.values()) == sum(getattr(item, side) for item in traffic) / 3
    assert set(costs.bytes_up) == {"job", "vectors", "context", "update", "evaluate"}


def test_what_a_client_does_by_itself_sends_nothing(setup: Setup) -> None:
    for name in ("client-alone", "i2cl-pooled", "icl-local", "icl-pooled", "zero-shot"):
        costs = METHODS[name].run(setup).costs
        assert (dict(costs.bytes_up), dict(costs.bytes_down)) == ({}, {})


def test_lora_sends_its_weights_once_a_round_and_receives_them_once_more(setup: Setup) -> None:
    costs = METHODS["fedavg-lora"].run(replace(setup, choices={"learning_rate": 1e-3})).costs
    with lora_layers(setup.backbone) as layers:
        weights = sum(array.nbytes for array in layers.state().values())
    up, down = sum(costs.bytes_up.values()), sum(costs.bytes_down.values())
    assert 2 * weights < up < 2 * weights + 8_000  # two rounds and their headers
    assert 3 * weights < down < 3 * weights + 12_000


def test_messages_arrive_as_they_were_sent_and_are_counted() -> None:
    meter = Meter(["a", "b"])
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(meter.up("x", {}, {"array": array})["array"], array)
    meter.down("x", {}, {"array": array})
    with meter.working("x"):
        sum(range(200_000))
    costs = meter.costs()
    assert costs.bytes_up["x"] == costs.bytes_down["x"] > array.nbytes / 2
    assert costs.cpu_seconds["x"] > 0


def test_peak_memory_sees_what_was_freed_again() -> None:
    with PeakMemory(torch.device("cpu")) as memory:
        for _ in range(3):
            array = np.ones(20_000_000)  # 153 MiB
            array += 1
            del array
    assert 140 < memory.mib < 320


def test_table_1_is_near_the_papers_where_both_count_the_same() -> None:
    rows = {row.what: row for row in table_1()}
    for start, tolerance in (("vectors up, once (float16)", 0.01), ("vectors down, once (float16)", 0.01), ("LoRA", 0.01)):
        row = next(row for what, row in rows.items() if what.startswith(start))
        assert row.ours == pytest.approx(row.paper, rel=tolerance)
    assert rows["coefficients up, a round"].ours < 1_024


def test_table_1_gives_the_bytes_of_real_messages(setup: Setup) -> None:
    rows = {row.what: row.ours for row in table_1(layers=3, width=32, key_value_width=16)}
    costs = METHODS["ifed-icl"].run(setup).costs
    assert costs.bytes_up["update"] / 2 == pytest.approx(rows["coefficients up, a round"], abs=24)  # numbers of other lengths
    assert costs.bytes_up["vectors"] == pytest.approx(rows["vectors up, once (float32)"], abs=24)
    lora = METHODS["fedavg-lora"].run(replace(setup, choices={"learning_rate": 1e-3})).costs
    assert lora.bytes_up["update"] / 2 == pytest.approx(next(v for k, v in rows.items() if k.startswith("LoRA")), abs=24)


def test_encode_is_what_the_analytic_table_uses() -> None:
    assert table_1.__globals__["encode"] is encode
