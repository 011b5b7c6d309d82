"""Accuracy that each part of the default adds, on the development sets.

Reads finished cells of the `dev` plan and runs nothing. Each variant changes one setting of the preset `subspace`. Accuracy is
on 300 rows of each development set's test file; no reported figure uses these sets. Bytes and seconds are of one client in a
whole run, means over the sets. All cells have one seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ifedicl.bench.cells import Record, load_records
from ifedicl.bench.plan import Plan, load_plan
from ifedicl.bench.runner import RESULTS
from ifedicl.bench.tables import OURS

KIB = 1024
QUESTIONS: Mapping[str, Mapping[str, str]] = {
    "rank": {"rank-4": "r = 4", "rank-16": "r = 16"},
    "read position": {"read-at-label": "read at the label word"},
    "layers": {"all-layers": "all layers", "upper-third": "the upper third"},
    "update": {
        "server-momentum": "momentum 0.5 on the clients' mean change",
        "server-adam": "Adam on the clients' mean change",
        "gradient": "exact gradient sums",
    },
    "readout": {
        "core-alone": "the subspace without a readout",
        "readout-alone": "a readout without the rounds",
        "no-text-state": "a readout of the last token's state alone",
        "ifed-icl-readout": "the paper's form with a readout",
    },
    "rounds": {"fast": "6 instead of 16"},
}

Cells: TypeAlias = Mapping[str, Mapping[str, Record]]
"""By method, then by set."""


def cells(plan: Plan, records: Sequence[Record]) -> Cells:
    """Finished cells of the plan."""
    wanted, table = set(plan.cells()), dict[str, dict[str, Record]]()
    for record in records:
        if record.cell in wanted:
            table.setdefault(record.cell.method, {})[record.cell.set] = record
    return table


def table(plan: Plan, records: Sequence[Record]) -> Iterator[str]:
    """Lines of Markdown: one for each variant, compared with the default."""
    found, sets = cells(plan, records), tuple(plan.sets)
    yield f"| | changed | {' | '.join(sets)} | mean | from ours | KiB | seconds |"
    yield f"|---|---|{'---:|' * (len(sets) + 4)}"
    ours = found.get(OURS, {})
    yield _row("**ours**", "nothing", ours, ours, sets)
    for question, variants in QUESTIONS.items():
        for name, words in variants.items():
            yield _row(question, f"{words} (`{name}`)", found.get(name, {}), ours, sets)


def _row(question: str, words: str, records: Mapping[str, Record], ours: Mapping[str, Record], sets: Sequence[str]) -> str:
    figures = [f"{100 * records[name].accuracy:.1f}" if name in records else "–" for name in sets]
    if set(records) != set(sets):
        return f"| {question} | {words} | {' | '.join(figures)} | – | – | – | – |"
    mean = float(np.mean([records[name].accuracy for name in sets])) * 100
    gains = [records[name].accuracy - ours[name].accuracy for name in sets if name in ours]
    points = f"{100 * float(np.mean(gains)):+.1f}" if len(gains) == len(sets) and records is not ours else "–"
    kib, seconds = (float(np.mean(values)) for values in zip(*(_costs(records[name]) for name in sets), strict=True))
    return f"| {question} | {words} | {' | '.join(figures)} | {mean:.1f} | {points} | {kib:,.0f} | {seconds:.1f} |"


def _costs(record: Record) -> tuple[float, float]:
    return record.total_bytes / KIB, record.client_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("docs/results/dev"), help="a folder with results.jsonl")
    arguments = parser.parse_args()

    plan, records = load_plan("dev"), load_records(arguments.results / RESULTS)
    print("\n".join(table(plan, records)))
    missing = len(plan.cells()) - len({record.cell for record in records} & set(plan.cells()))
    if missing:
        print(f"{missing} of {len(plan.cells())} cells are missing", file=sys.stderr)
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
