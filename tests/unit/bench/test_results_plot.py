"""The plot of accuracy against cost holds the figures of the committed cells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import results_plot
from ifedicl.bench.cells import load_records
from ifedicl.bench.plan import load_plan

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def found() -> list[results_plot.Point]:
    return results_plot.points(load_plan("cpu"), load_records(ROOT / "docs/results/cpu/results.jsonl"))


def test_its_means_are_those_of_the_tables(found: list[results_plot.Point]) -> None:
    table = (ROOT / "docs/results/cpu/results.md").read_text()
    means = dict(re.findall(r"^\| ([\w-]+) \|.* \| ([\d.]+) \|$", table.partition("minus each")[0], flags=re.MULTILINE))
    assert {point.method: f"{point.accuracy:.1f}" for point in found} == means
    assert len(means) == 11


def test_the_committed_picture_names_every_method_with_its_accuracy_twice(found: list[results_plot.Point]) -> None:
    drawn = (ROOT / "docs/images/accuracy-against-cost.svg").read_text()
    for point in found:
        assert drawn.count(f">{point.label}<") == 2, f"{point.label}: run python benchmarks/results_plot.py"
