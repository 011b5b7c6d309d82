"""Draws the finished cells of the `cpu` plan: accuracy against bytes and against processor seconds of one client, all methods.

    python benchmarks/results_plot.py [--results docs/results/cpu] [--out docs/images/accuracy-against-cost.svg]

Reads finished cells and runs nothing. A point is a mean over data sets of the mean over seeds, at Dirichlet(0.5), as in
docs/results/cpu/results.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ifedicl import files
from ifedicl.bench.cells import Record, load_records
from ifedicl.bench.plan import Plan, load_plan
from ifedicl.bench.runner import RESULTS
from ifedicl.bench.tables import by_set
from ifedicl.pictures import ACCENT, INK, QUIET, RAW, blank, svg_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
ALPHA = 0.5
POOLED = ("icl-pooled", "i2cl-pooled")
"""Methods that see the text of all clients in one place: references, which no federation can run."""
OURS = ("ifed-icl-subspace", "fast", "ifed-icl")
BESIDE = ("fast", "ridge-probe")
BELOW = ("zero-shot", "icl-local", "fedavg-lora", "logit-affine")
"""Methods whose name stands to the left of the point, and below it: neighbours take the other sides."""


@dataclass(frozen=True)
class Point:
    """One method: accuracy in %, and KiB and processor seconds of one client; 0 where nothing is sent or trained."""

    method: str
    accuracy: float
    kibibytes: float
    seconds: float

    @property
    def label(self) -> str:
        """The name with the accuracy, as on the plot."""
        return f"{self.method} {self.accuracy:.1f}"


def points(plan: Plan, records: Sequence[Record]) -> list[Point]:
    """A point for each method of the plan that has cells for every data set."""
    found = []
    for method in plan.methods:
        table = by_set(records, plan, method, ALPHA)
        if len(table) < len(plan.sets):
            continue

        def mean(figure: Callable[[Record], float], cells: Sequence[Sequence[Record]] = tuple(table.values())) -> float:
            return float(np.mean([np.mean([figure(record) for record in by_seed]) for by_seed in cells]))

        own = mean(lambda record: record.accuracy), mean(lambda record: record.total_bytes), mean(lambda r: r.client_seconds)
        found.append(Point(method, 100 * own[0], own[1] / 1024, own[2]))
    return found


def draw(found: Sequence[Point]) -> str:
    """Both panels as one SVG file."""
    figure = blank(9.6, 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    _panel(
        panels[0],
        found,
        lambda point: point.kibibytes,
        "KiB to and from one client, whole run (hollow: text pooled)",
        "no messages",
    )
    _panel(panels[1], found, lambda point: point.seconds, "processor seconds of one client, whole run", "no training")
    panels[0].set_ylabel("accuracy in %, mean of six sets")
    return svg_file(figure)


def _panel(axes: Axes, found: Sequence[Point], cost: Callable[[Point], float], name: str, without: str) -> None:
    """Points with their names beside them; a method without this cost stands at the left edge."""
    costs = [cost(point) for point in found if cost(point) > 0]
    edge, last = min(costs) / 12, max(costs) * 14
    axes.set_xscale("log")
    axes.set_xlim(edge / 2, last)
    axes.set_ylim(40, 92)
    axes.axvspan(edge / 2, edge * 4, color=QUIET, alpha=0.1, linewidth=0)
    axes.text(edge / 1.7, 91, without, color=QUIET, fontsize=8, va="top")
    for point in found:
        colour = ACCENT if point.method in OURS else RAW if point.method == "zero-shot" else INK
        place = cost(point) or edge
        axes.scatter([place], [point.accuracy], s=34, facecolor="none" if point.method in POOLED else colour, edgecolor=colour)
        across, up = -6 if point.method in BESIDE else 6, -4 if point.method in BELOW else 0 if point.method in BESIDE else 4
        axes.annotate(
            point.label,
            (place, point.accuracy),
            xytext=(across, up),
            textcoords="offset points",
            ha="right" if across < 0 else "left",
            va="bottom" if up > 0 else "top" if up < 0 else "center",
            color=colour,
            fontsize=8,
        )
    axes.set_xlabel(name)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "accuracy-against-cost.svg")
    arguments = parser.parse_args()
    found = points(load_plan("cpu"), load_records(arguments.results / RESULTS))
    files.write_text(arguments.out, draw(found))
    for point in sorted(found, key=lambda point: -point.accuracy):
        print(f"{point.label:<24} {point.kibibytes:>12,.1f} KiB {point.seconds:>8.1f} s")


if __name__ == "__main__":
    main()
