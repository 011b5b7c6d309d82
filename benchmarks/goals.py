"""Compares the goals that were set before the `cpu` plan ran with its cells.

Reads finished cells and runs nothing. Figures are means over data sets of the mean over the seeds that all compared methods
have. A goal counts as reached only if no cell of the plan is missing for it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ifedicl.bench.cells import Record, load_records
from ifedicl.bench.plan import Plan, load_plan
from ifedicl.bench.runner import RESULTS
from ifedicl.bench.tables import OURS, PAPER_FORM, by_set

FAST, RIDGE, LORA = "fast", "ridge-probe", "fedavg-lora"
MAIN, EVEN, UNEVEN = 0.5, 100.0, 0.1
KIB = 1024

Figures: TypeAlias = Mapping[str, Mapping[int, Record]]
"""Finished cells of one method and split: by set, then by seed."""


@dataclass(frozen=True)
class Goal:
    """One goal and its measurement.

    Attributes:
        what: in words, with the bound.
        measured: in words.
        holds: whether the figure is within the bound.
        seeds: by set, the number of seeds in the figure.
        wanted: the plan's number of seeds for each set.
    """

    what: str
    measured: str
    holds: bool
    seeds: dict[str, int]
    wanted: int

    @property
    def is_whole(self) -> bool:
        """Whether no cell is missing."""
        return set(self.seeds.values()) == {self.wanted}

    @property
    def verdict(self) -> str:
        """The verdict in a word, and the number of missing cells."""
        if not any(self.seeds.values()):
            return "no cells yet"
        word = "reached" if self.holds else "MISSED"
        return word if self.is_whole else f"{word} so far, {sum(self.seeds.values())} of {self.wanted * len(self.seeds)} cells"


def goals(plan: Plan, records: Sequence[Record]) -> Iterator[Goal]:
    """All goals, in the order in which they were set."""
    sets = tuple(plan.sets)
    split = tuple(dict.fromkeys(cell.set for cell in plan.cells() if cell.alpha == UNEVEN))
    wanted = len({cell.seed for cell in plan.cells() if cell.seed is not None})

    def figures(method: str, alpha: float = MAIN) -> Figures:
        table = by_set(records, plan, method, alpha)
        return {
            name: {record.cell.seed: record for record in rows if record.cell.seed is not None} for name, rows in table.items()
        }

    def compared(
        names: Sequence[str], mine: Figures, theirs: Figures, figure: Callable[[Record], float]
    ) -> tuple[float, float, dict[str, int]]:
        """Both means over the shared cells, and the number of shared seeds by set."""
        shared = {name: sorted(mine.get(name, {}).keys() & theirs.get(name, {}).keys()) for name in names}
        ours, others = (
            [np.mean([figure(side[name][seed]) for seed in seeds]) for name, seeds in shared.items() if seeds]
            for side in (mine, theirs)
        )
        counts = {name: len(seeds) for name, seeds in shared.items()}
        return (float(np.mean(ours)), float(np.mean(others)), counts) if ours else (math.nan, math.nan, counts)

    def at_least(what: str, names: Sequence[str], mine: Figures, theirs: Figures, points: float) -> Goal:
        mean, other, counts = compared(names, mine, theirs, lambda record: 100 * record.accuracy)
        measured = f"{mean:.1f} against {other:.1f}, {mean - other:+.1f} points"
        return Goal(f"accuracy of {what}", measured, mean >= other + points, counts, wanted)

    def better(method: str, other: str, points: float) -> Goal:
        return at_least(f"{method} >= {other} {points:+g} points", sets, figures(method), figures(other), points)

    def share(method: str, figure: Callable[[Record], float], what: str, bound: float, unit: str) -> Goal:
        mean, other, counts = compared(sets, figures(method), figures(LORA), figure)
        measured = f"{mean:,.1f} against {other:,.1f} {unit}, {mean / other:.3f}"
        return Goal(f"{what} of {method} <= {bound:g} of {LORA}", measured, mean <= bound * other, counts, wanted)

    yield better(OURS, PAPER_FORM, 8)
    yield better(OURS, RIDGE, -2)
    yield better(OURS, LORA, -1)
    ours = figures(OURS)
    counts = {name: len(ours.get(name, {})) for name in sets}
    cells = [record for by_seed in ours.values() for record in by_seed.values()]
    for way in ("up", "down"):
        most = max((getattr(record, f"bytes_{way}")["update"] / record.rounds / KIB for record in cells), default=math.nan)
        yield Goal(f"a round's message {way} <= 16 KiB", f"{most:.1f} KiB, most of any cell", most <= 16, counts, wanted)
    yield share(OURS, lambda record: record.total_bytes / KIB, "total bytes, all stages,", 1 / 20, "KiB a client")
    yield better(FAST, LORA, -2)
    yield share(FAST, lambda record: record.client_seconds, "client seconds", 1 / 2, "processor seconds")
    what = f"{OURS} at Dirichlet {UNEVEN:g} >= that at {EVEN:g} -2 points, {' and '.join(split)}"
    yield at_least(what, split, figures(OURS, UNEVEN), figures(OURS, EVEN), -2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("docs/results/cpu"), help="a folder with results.jsonl")
    arguments = parser.parse_args()

    found = list(goals(load_plan("cpu"), load_records(arguments.results / RESULTS)))
    print("| goal | measured | |\n|---|---|---|")
    for goal in found:
        print(f"| {goal.what} | {goal.measured} | {goal.verdict} |")
    sys.exit(0 if all(goal.holds and goal.is_whole for goal in found) else 1)


if __name__ == "__main__":
    main()
