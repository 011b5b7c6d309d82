"""A small data set and a plan on it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ifedicl.bench.plan import Plan
from ifedicl.settings import validated
from tests.support import tiny

POOL, TEST = 24, 10


def write_set(folder: Path, *, meta: bool = True, train: int = 40, test: int = 16) -> Path:
    """A folder with a data set: labelled rows, and ``meta.json`` unless it is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.write_rows(folder / "train.jsonl", tiny.rows(train, seed=0))
    tiny.write_rows(folder / "test.jsonl", tiny.rows(test, seed=5))
    if meta:
        about = {"labels": list(tiny.TASK.labels), "template": tiny.TASK.template, "source": "ours"}
        (folder / "meta.json").write_text(json.dumps(about))
    return folder


def plan_of(model: Path, folder: Path, methods: Iterable[str], **values: Any) -> Plan:
    """A plan of one model and one set; ``values`` replace its fields."""
    base = {
        "name": "tiny",
        "models": {"tiny": {"source": str(model)}},
        "sets": {"moods": str(folder)},
        "clients": 3,
        "pool": POOL,
        "test_rows": TEST,
        "training": {"rounds": 2, "local_steps": 2, "batch_size": 2, "evaluate_every": 1},
        "grids": [{"methods": list(methods), "seeds": [0]}],
    }
    return validated(Plan, base | values, "tiny")
