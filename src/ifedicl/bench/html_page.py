"""The results of a plan as one HTML file that contains its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from ifedicl import __version__, files
from ifedicl.bench.cells import Record
from ifedicl.bench.plan import Plan
from ifedicl.bench.tables import PAPER_FORM, by_model, by_set, markdown
from ifedicl.pictures import ACCENT, PALE, blank, svg

_ALONE = "client-alone"
_COLUMNS = 3

_Table = dict[str, list[Record]]
"""Records by method."""


def write_page(plan: Plan, records: Sequence[Record], path: Path) -> None:
    """Write tables and plots of finished cells.

    Raises:
        StorageError: the file cannot be written.
    """
    environment = Environment(loader=PackageLoader("ifedicl", "templates"), autoescape=select_autoescape())
    page = environment.get_template("bench.html").render(
        plan=plan,
        version=__version__,
        sections=[(model, _pictures(plan, model_records)) for model, model_records in by_model(plan, records)],
        blocks=_blocks(markdown(plan, records)),
        finished=len(records),
        cells=len(plan.cells()),
    )
    files.write_text(path, page)


def _blocks(text: str) -> list[tuple[str, list[list[str]]]]:
    """The Markdown of ``tables`` as (kind, content): headings, paragraphs and tables."""
    blocks: list[tuple[str, list[list[str]]]] = []
    for line in text.splitlines():
        if line.startswith("|"):
            if set(line) <= set("|-: "):
                continue
            if not blocks or blocks[-1][0] != "table":
                blocks.append(("table", []))
            blocks[-1][1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif line:
            blocks.append(("heading" if line.startswith("#") else "text", [[line.lstrip("# ")]]))
    return blocks


def _pictures(plan: Plan, records: Sequence[Record]) -> list[tuple[str, str]]:
    alpha = next((record.cell.alpha for record in records if record.cell.alpha is not None), None)
    against_bytes = partial(_against, lambda record: record.total_bytes, "bytes, up and down")
    against_seconds = partial(_against, lambda record: record.client_seconds, "processor seconds")
    return [
        ("Held-out accuracy, round by round", _each_set(plan, records, alpha, _rounds)),
        ("The federation against each client alone, on test text", _each_set(plan, records, alpha, _against_alone)),
        ("Accuracy against bytes of one client", _each_set(plan, records, alpha, against_bytes)),
        ("Accuracy against processor seconds of one client", _each_set(plan, records, alpha, against_seconds)),
    ]


def _each_set(plan: Plan, records: Sequence[Record], alpha: float | None, draw: Callable[[Axes, _Table], None]) -> str:
    """A picture with one panel for each data set."""
    rows = -(-len(plan.sets) // _COLUMNS)
    figure = blank(11, 3.2 * rows + 0.5)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    by_method = {name: by_set(records, plan, name, alpha) for name in plan.methods}
    labelled: dict[str, Artist] = {}  # of all panels: one key above them, and none over a plot
    for axes, name in zip(panels, plan.sets, strict=False):
        draw(axes, {method: table[name] for method, table in by_method.items() if name in table})
        labelled |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.set_title(name, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(plan.sets) :]:
        axes.set_visible(False)
    if labelled:
        figure.legend(labelled.values(), labelled.keys(), loc="outside upper left", ncols=6, frameon=False, fontsize=8)
    return svg(figure)


def _rounds(axes: Axes, table: _Table) -> None:
    for index, (method, records) in enumerate(table.items()):
        curves = [record.curve for record in records if len(record.curve) > 1]
        for number, curve in enumerate(curves):
            points = [(point.round, point.accuracy) for point in curve if point.accuracy is not None]
            label = None if number else method
            axes.plot(*zip(*points, strict=True), color=_colour(index), marker="o", markersize=3, label=label)
    axes.set_xlabel("round")
    axes.set_ylabel("held-out accuracy")


def _against_alone(axes: Axes, table: _Table) -> None:
    for seed, record in enumerate(table.get(_ALONE, [])):
        alone = [np.mean([int(hit) for hit in row]) for row in record.hits.values()]
        axes.scatter([seed] * len(alone), alone, color=PALE, s=18, label=None if seed else "each client alone")
    for seed, record in enumerate(table.get(PAPER_FORM, [])):
        axes.scatter([seed], [record.accuracy], color=ACCENT, marker="D", s=34, label=None if seed else PAPER_FORM)
    seeds = [record.cell.seed for record in table.get(PAPER_FORM, [])]
    axes.set_xticks(range(len(seeds)), [f"seed {seed}" for seed in seeds])
    axes.set_ylabel("accuracy")


def _against(cost: Callable[[Record], float], name: str, axes: Axes, table: _Table) -> None:
    for index, (method, records) in enumerate(table.items()):
        costs, accuracies = [cost(record) for record in records], [record.accuracy for record in records]
        if any(costs):
            axes.scatter(costs, accuracies, color=_colour(index), s=22, label=method)
        else:
            axes.axhline(float(np.mean(accuracies)), color=_colour(index), linestyle=":", linewidth=1, label=f"{method} (none)")
    axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.set_ylabel("accuracy")


def _colour(index: int) -> str:
    palette: list[str] = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    return palette[index % len(palette)]
