"""What the cells of the `cpu` plan say to the goals that we set ourselves before it was run.

Reads finished cells, runs nothing. Figures are means over data sets of the mean over seeds, of the seeds that all compared
methods have; a goal counts as reached only where no cell of the plan is missing for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ifedicl.bench.plan import Plan, load_plan
from ifedicl.bench.results import Record, load_records
from ifedicl.bench.runner import RESULTS

OURS, FAST, PAPER, RIDGE, LORA = "ifed-icl-subspace", "fast", "ifed-icl", "ridge-probe", "fedavg-lora"
EVEN, UNEVEN = 100.0, 0.1
KIB = 1024


@dataclass(frozen=True)
class Cells:
    """The finished cells of a plan, and where they are missing.

    Attributes:
        plan: which cells there should be.
        records: those that there are.
    """

    plan: Plan
    records: Sequence[Record]

    def mean(
        self, method: str, figure: Callable[[Record], float], alpha: float, beside: Sequence[str], sets: Sequence[str]
    ) -> float:
        """Over sets and seeds that all of ``beside`` have too; NaN where there are none."""
        shared = self.shared((method, *beside), alpha, sets)
        by_set = [
            np.mean([figure(self.find(method, name, seed, alpha)) for seed in seeds]) for name, seeds in shared.items() if seeds
        ]
        return float(np.mean(by_set)) if by_set else float("nan")

    def shared(self, methods: Sequence[str], alpha: float, sets: Sequence[str]) -> dict[str, list[int]]:
        """By set, the seeds that all the methods have."""
        seeds = sorted({cell.seed for cell in self.plan.cells() if cell.seed is not None})
        return {
            name: [seed for seed in seeds if all(self.has(method, name, seed, alpha) for method in methods)] for name in sets
        }

    def has(self, method: str, name: str, seed: int, alpha: float) -> bool:
        """Whether a cell is there."""
        return any(self._is(record, method, name, seed, alpha) for record in self.records)

    def find(self, method: str, name: str, seed: int, alpha: float) -> Record:
        """A cell that is there."""
        return next(record for record in self.records if self._is(record, method, name, seed, alpha))

    @staticmethod
    def _is(record: Record, method: str, name: str, seed: int, alpha: float) -> bool:
        cell = record.cell
        return (cell.method, cell.set, cell.seed) == (method, name, seed) and cell.alpha in (alpha, None)


@dataclass(frozen=True)
class Goal:
    """One goal, and what was measured.

    Attributes:
        what: in words, with the bound.
        measured: in words.
        holds: whether the figure keeps the bound.
        seeds: by set, how many seeds it rests on.
        wanted: how many seeds of each set the plan has.
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
        """In a word, and what is missing."""
        if not any(self.seeds.values()):
            return "no cells yet"
        word = "reached" if self.holds else "MISSED"
        return word if self.is_whole else f"{word} so far, {sum(self.seeds.values())} of {self.wanted * len(self.seeds)} cells"


def goals(cells: Cells) -> Iterator[Goal]:
    """All of them, in the order in which they were set."""
    sets, main = tuple(cells.plan.sets), 0.5
    wanted = len({cell.seed for cell in cells.plan.cells() if cell.seed is not None})

    def accuracy(record: Record) -> float:
        return 100 * record.accuracy

    def at_least(ours: str, other: str, points: float) -> Goal:
        mine, theirs = (cells.mean(one, accuracy, main, (ours, other), sets) for one in (ours, other))
        counts = {name: len(seeds) for name, seeds in cells.shared((ours, other), main, sets).items()}
        measured = f"{mine:.1f} against {theirs:.1f}, {mine - theirs:+.1f} points"
        return Goal(f"accuracy of {ours} >= {other} {points:+g} points", measured, mine >= theirs + points, counts, wanted)

    def share(ours: str, other: str, figure: Callable[[Record], float], what: str, bound: float, unit: str) -> Goal:
        mine, theirs = (cells.mean(one, figure, main, (ours, other), sets) for one in (ours, other))
        counts = {name: len(seeds) for name, seeds in cells.shared((ours, other), main, sets).items()}
        measured = f"{mine:,.1f} against {theirs:,.1f} {unit}, {mine / theirs:.3f}"
        return Goal(f"{what} of {ours} <= {bound:g} of {other}", measured, mine <= bound * theirs, counts, wanted)

    yield at_least(OURS, PAPER, 8)
    yield at_least(OURS, RIDGE, -2)
    yield at_least(OURS, LORA, -1)
    own = [record for record in cells.records if record.cell.method == OURS and record.cell.alpha == main]
    counts = {name: len(seeds) for name, seeds in cells.shared((OURS,), main, sets).items()}
    for way in ("up", "down"):
        most = max((getattr(record, f"bytes_{way}")["update"] / record.rounds / KIB for record in own), default=float("nan"))
        yield Goal(f"a round's message {way} <= 16 KiB", f"{most:.1f} KiB, most of any cell", most <= 16, counts, wanted)
    yield share(OURS, LORA, lambda record: record.total_bytes / KIB, "total bytes, all stages,", 1 / 20, "KiB a client")
    yield at_least(FAST, LORA, -2)
    yield share(FAST, LORA, lambda record: record.client_seconds, "client seconds", 1 / 2, "processor seconds")
    split = tuple(dict.fromkeys(cell.set for cell in cells.plan.cells() if cell.alpha == UNEVEN))
    uneven, even = (cells.mean(OURS, accuracy, alpha, (), split) for alpha in (UNEVEN, EVEN))
    both = [cells.shared((OURS,), alpha, split) for alpha in (UNEVEN, EVEN)]
    yield Goal(
        f"accuracy of {OURS} at Dirichlet {UNEVEN:g} >= that at {EVEN:g} -2 points, {' and '.join(split)}",
        f"{uneven:.1f} against {even:.1f}, {uneven - even:+.1f} points",
        uneven >= even - 2,
        {name: min(len(one[name]) for one in both) for name in split},
        wanted,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("docs/results/cpu"), help="a folder with results.jsonl")
    arguments = parser.parse_args()

    cells = Cells(load_plan("cpu"), load_records(arguments.results / RESULTS))
    found = list(goals(cells))
    print("| goal | measured | |\n|---|---|---|")
    for goal in found:
        print(f"| {goal.what} | {goal.measured} | {goal.verdict} |")
    sys.exit(0 if all(goal.holds and goal.is_whole for goal in found) else 1)


if __name__ == "__main__":
    main()
