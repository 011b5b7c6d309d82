"""The benchmark on a set of choices: the methods that need no labels run, and the others say what they need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.bench.datasets import load_set
from ifedicl.bench.methods import METHODS
from ifedicl.bench.plan import SetSettings
from ifedicl.bench.setup import Setup
from ifedicl.errors import DataError, TaskError
from ifedicl.kinds.choose import ChooseTask
from ifedicl.settings import ModelSettings, changed, load_preset
from tests.support.choices import TASK, choices

SHORT = {"rounds": {"rounds": 2}, "calibration": {"local_steps": 1, "batch_size": 2}}


def written(folder: Path, kind: str = "choose") -> SetSettings:
    """A folder with choices."""
    folder.mkdir()
    for seed, name in enumerate(("train", "test")):
        rows = ({"text": row.text, "options": row.options, "answer": row.which} for row in choices(24, seed=seed))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta.json").write_text(json.dumps({"kind": kind, "template": TASK.template}))
    return SetSettings(source=str(folder), label_column="answer")


@pytest.mark.parametrize("name", ["zero-shot", "ifed-icl", "one-shot", "ifed-icl-subspace", "fedavg-lora", "client-alone"])
def test_methods_that_need_no_labels_choose_in_every_test_row(backbone: Backbone, tmp_path: Path, name: str) -> None:
    data = load_set("places", written(tmp_path / "set"))
    assert isinstance(data.task, ChooseTask)
    method = load_preset(METHODS[name].preset)
    method = method if method.is_one_shot else changed(method, SHORT, "a test")
    hands = {"a": data.train[:12], "b": data.train[12:]}
    setup = Setup(backbone, ModelSettings(source="tiny", dtype="float32"), data.task, hands, data.test, method)
    measured = METHODS[name].run(setup)
    assert all(evaluation.examples == 24 for evaluation in measured.evaluations.values())
    assert all(0 <= evaluation.accuracy <= 1 for evaluation in measured.evaluations.values())


@pytest.mark.parametrize("name", ["icl-pooled", "ridge-probe", "logit-affine"])
def test_methods_that_need_labels_say_so(backbone: Backbone, tmp_path: Path, name: str) -> None:
    data = load_set("places", written(tmp_path / "set"))
    method = changed(load_preset("paper"), SHORT, "a test")
    setup = Setup(backbone, ModelSettings(source="tiny"), data.task, {"a": data.train}, data.test, method)
    with pytest.raises(TaskError, match=r"'choose'; allowed for .*: 'classify'"):
        METHODS[name].run(setup)


def test_an_unknown_kind_in_meta_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"meta\.json: kind: received 'chose'; allowed: classify, choose"):
        load_set("places", written(tmp_path / "set", kind="chose"))
