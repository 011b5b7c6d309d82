"""A benchmark of answers of text: pools of several sizes of one set, and LoRA in several sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.bench.plan import load_plan
from ifedicl.bench.runner import run_plan
from ifedicl.bench.tables import markdown
from ifedicl.errors import ConfigError
from tests.support.bench import plan_of, write_set
from tests.support.passages import TASK, write_files

LARGE = {"method": "fedavg-lora", "preset": "paper", "lora": {"rank": 3, "on": "all-linear"}}
CORE = {"preset": "subspace", "settings": {"readout": False, "injection": {"from_depth": 0.0}, "subspace": {"rank": 4}}}


def test_each_set_may_have_a_pool_of_its_own(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "moods")
    sets = {"few": {"source": str(folder), "pool": 8}, "plans": str(folder)}
    plan = plan_of(tmp_path, folder, ["ifed-icl"], sets=sets, pool=24)
    assert (plan.pool_of("few"), plan.pool_of("plans")) == (8, 24)
    sizes = [plan.size(name) for name in sets]
    assert [size.training + size.held_out for size in sizes] == [8, 24]
    few, whole = (plan.decides(cell) for cell in plan.cells())
    assert few != whole
    smaller = plan_of(tmp_path, folder, ["ifed-icl"], sets={"plans": str(folder)}, pool=8)
    assert smaller.decides(smaller.cells()[0]) == few, "a pool counts wherever it is written"


def test_a_size_is_of_lora_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora: received a size for another method"):
        plan_of(tmp_path, tmp_path, ["x"], variants={"x": {"preset": "paper", "lora": {"rank": 4}}})
    plan = plan_of(tmp_path, tmp_path, ["large", "usual"], variants={"large": LARGE, "usual": {**LARGE, "lora": None}})
    first, second = (plan.decides(cell) for cell in plan.cells())
    assert first != second


def test_the_shipped_plan_compares_cores_and_loras_at_equal_passes() -> None:
    plan = load_plan("extract")
    trained = [name for name in plan.grids[0].methods if name != "zero-shot"]
    assert len(trained) == 5
    methods = [plan.method(name, 0) for name in trained]
    assert (
        len({(method.rounds.rounds, method.calibration.local_steps, method.calibration.batch_size) for method in methods}) == 1
    )
    assert [method.rank for method in methods] == [8, 32, 64, 0, 0]
    assert all(method.injected_layers(30) == range(30) for method in methods)
    assert {plan.pool_of(name) for name in plan.sets} == {400, 3000}
    assert len(plan.cells()) == len(plan.sets) * (1 + 3 * len(trained))


def test_a_plan_of_answers_runs_and_resumes(backbone: Backbone, llama_folder: Path, tmp_path: Path) -> None:
    write_files(tmp_path, {"train": 30, "test": 8})
    (tmp_path / "meta.json").write_text(json.dumps({"kind": "extract", "template": TASK.template}))
    sets = {"words": {"source": str(tmp_path), "label_column": "answer"}}
    methods = ["zero-shot", "core", "large"]
    plan = plan_of(llama_folder, tmp_path, methods, sets=sets, test_rows=5, variants={"core": CORE, "large": LARGE})
    before = [type(module) for module in backbone.model.modules()]
    records = run_plan(plan, tmp_path / "out")
    assert [record.cell.method for record in records] == methods
    assert all(len(record.hits["all"]) == 5 for record in records)
    by_method = {record.cell.method: record for record in records}
    assert by_method["large"].settings["rank"] == 3
    assert by_method["large"].settings["on"] == "all-linear"
    sent = {name: sum(record.bytes_up.values()) for name, record in by_method.items()}
    assert 0 == sent["zero-shot"] < sent["core"] < sent["large"]
    assert all(point.loss is not None for point in by_method["core"].curve)
    again = run_plan(plan, tmp_path / "out")
    assert [(record.cell, record.date) for record in again] == [(record.cell, record.date) for record in records]
    assert "slot F1" in markdown(plan, records)
    assert [type(module) for module in backbone.model.modules()] == before
