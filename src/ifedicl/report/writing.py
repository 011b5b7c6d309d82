"""Prints a report, and writes it as one HTML file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from rich.console import Console
from rich.table import Table

from ifedicl import __version__, files
from ifedicl.pictures import can_draw
from ifedicl.report.facts import Report, percent
from ifedicl.report.plots import Picture, pictures_of
from ifedicl.report.rich_tables import CONFUSION, tables_of
from ifedicl.report.verdict import answer_of, details_of, size_of


def print_report(report: Report, console: Console) -> None:
    """Print the report as tables. ``console`` must not interpret markup, because labels and tasks may contain brackets."""
    for table in tables_of(report):
        console.print(table)
    for sentence in (*details_of(report), *answer_of(report)):
        console.print(sentence, highlight=False)
    for text, prediction in report.samples:
        console.print(
            f"  {text!r} → {prediction.label} ({percent(prediction.probabilities[prediction.label])})", highlight=False
        )


def write_report(report: Report, path: Path) -> None:
    """Write the report as one HTML file; its pictures are inside, or left out without matplotlib.

    Raises:
        StorageError: it cannot be written.
    """
    environment = Environment(loader=PackageLoader("ifedicl", "templates"), autoescape=select_autoescape())
    pictures: list[Picture] = pictures_of(report) if can_draw() else []
    page = environment.get_template("report.html").render(
        report=report,
        version=__version__,
        pictures=pictures,
        can_draw=can_draw(),
        tables=[_plain(table, _shares(report) if table.title == CONFUSION else None) for table in tables_of(report)],
        percent=percent,
        answer=answer_of(report),
        details=details_of(report),
        size=size_of(report),
    )
    files.write_text(path, page)


def _shares(report: Report) -> list[list[float]]:
    """Each count of the adapter's confusion matrix as a share of its true label's texts."""
    matrix = report.rows[-1].evaluation.confusion
    shares: list[list[float]] = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).tolist()
    return shares


def _plain(table: Table, shares: list[list[float]] | None) -> dict[str, object]:
    """A table's cells, for the template; ``shares`` shade a confusion matrix."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": table.title,
        "caption": table.caption,
        "header": [str(column.header) for column in table.columns],
        "rows": list(zip(*columns, strict=True)),
        "shares": shares,
    }
