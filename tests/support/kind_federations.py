"""What tests of federations of each kind of task share: four hands, a short method, an owner's file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.federation.driver import Federated
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyExample
from ifedicl.runs import RunOptions, federate, simulate
from ifedicl.settings import Method, ModelSettings, changed, load_preset
from tests.support import tiny

SIZES = {"a": 20, "b": 17, "c": 23, "d": 18}
"""Examples of each client."""
SHORT: dict[str, Any] = {
    "weighting": "examples",
    "holdout": {"selection": 0.3, "gate": 0.0},
    "rounds": {"rounds": 2, "select_by": "last"},
    "calibration": {"local_steps": 2, "batch_size": 4, "learning_rate": 0.01},
}
SECURE = {"mode": "secure", "min_survivors": 3, "min_examples": 4}


def short(**sections: Any) -> Method:
    """The preset with a subspace, in two rounds of two steps."""
    return changed(load_preset("subspace"), SHORT | sections, "a test")


def federated(
    backbone: Backbone,
    task: AnyTask,
    hands: Mapping[str, Sequence[AnyExample]],
    method: Method,
    options: RunOptions | None = None,
) -> Federated:
    """A whole run."""
    clients = simulate(backbone, task, hands)
    return federate(clients, ModelSettings(source="tiny"), task, method, options=options or RunOptions())


def assert_learnt_the_same(ours: Adapter, theirs: Adapter) -> None:
    """Check that both have nearly the same coefficients, and not those of the raw model."""
    assert not theirs.coefficients.is_identity
    for name, array in theirs.coefficients.arrays.items():
        np.testing.assert_allclose(ours.coefficients.arrays[name], array, atol=2e-3)


def owner_client(folder: Path, model: Path, task: AnyTask, *, data: str = "", allow: str = "") -> Path:
    """The ``client.toml`` of an owner of ``own.jsonl``, with further lines in two sections; two tasks are allowed."""
    path = folder / "client.toml"
    path.write_text(
        f'[data]\nfile = "own.jsonl"\nkind = "{task.kind}"\n{data}'
        f'[model]\nsource = {json.dumps(str(model))}\ndevice = "cpu"\ndtype = "float32"\n'
        f'[allow]\ntasks = ["{task.digest}", "{tiny.TASK.digest}"]\nmodels = ["any"]\n{allow}'
    )
    return path
