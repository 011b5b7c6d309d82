"""A small data set, and what a method is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.bench.datasets import load_set
from ifedicl.bench.plan import SetSettings
from ifedicl.bench.setup import Setup
from ifedicl.settings import ModelSettings
from tests.support.bench import TEST, plan_of, write_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "moods")


@pytest.fixture
def setup(backbone: Backbone, folder: Path) -> Setup:
    data = load_set("moods", SetSettings(source=str(folder)))
    examples = {name: data.train[start : start + 8] for name, start in (("a", 0), ("b", 8), ("c", 16))}
    method = plan_of(folder, folder, ["zero-shot"]).method("ifed-icl", 0)
    return Setup(backbone, ModelSettings(source="tiny"), data.task, examples, data.test[:TEST], method)
