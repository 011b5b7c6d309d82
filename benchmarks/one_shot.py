"""What one message buys: accuracy, bytes and seconds of the preset "one-shot", in open and in secure mode.

Every run is a whole federation over the local engine. What the raw model says of a text is computed once for each set and kept
in --cache. Test rows are read once, at the end of each run. Runs whose figures are in --out are not repeated. --table prints
the table. Seconds are of all clients and the coordinator, without the model's passes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from _sets import load_labelled, reference_examples
from _victims import demo_backbone
from ifedicl import files, runs
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.plan import SetSettings, load_plan
from ifedicl.core import sketch
from ifedicl.data import dirichlet_split, draw_pool
from ifedicl.metrics import Evaluation
from ifedicl.settings import Method, ModelSettings, changed, load_preset
from private_readout import RawReadings

DEVELOPMENT = ("sst5", "clinc_domain", "sms_spam", "tweet_sentiment")
MODES = ("open", "secure")
BUDGET = sketch.OWN.one_shot
ALPHA = 0.5


@dataclass(frozen=True)
class Cell:
    """One run: its set, privacy mode, pool of labelled rows, number of clients and seed."""

    data: str
    mode: str
    pool: int
    clients: int
    seed: int
    budget: float = BUDGET

    @property
    def name(self) -> str:
        """In the file of results."""
        budget = "" if self.budget == BUDGET else f" bytes {self.budget:g}"
        return f"{self.data} {self.mode} pool {self.pool} clients {self.clients}{budget} seed {self.seed}"

    @property
    def method(self) -> Method:
        """The preset in this mode, without a gate: held-out examples choose between readouts and label words."""
        privacy = {"mode": self.mode, "min_survivors": max(3, self.clients * 4 // 5), "min_examples": 2}
        sections = {"seed": self.seed, "rounds": {"select_by": "accuracy"}, "privacy": privacy}
        return changed(load_preset("one-shot"), sections, "this benchmark")


class Stage:
    """One set: its texts, and the raw model's readings of them."""

    def __init__(self, arguments: argparse.Namespace, name: str) -> None:
        settings = load_plan("dev", arguments.data).sets.get(name) or SetSettings(source=str(arguments.data / name))
        data = load_labelled(name, settings)
        self.task, self.train, self.test = data.task, data.train, data.test
        self.backbone = demo_backbone("float32")
        self._scorer = Scorer(self.backbone, self.task)
        layers = load_preset("one-shot").pooled_layers(self.backbone.layers)
        rows = (*self.train, *self.test, *reference_examples(self.task))
        self.readings = RawReadings(self._scorer, layers, rows, arguments.cache / f"{name}-one-shot-float32.npz")

    def run(self, cell: Cell) -> dict[str, Any]:
        """One federation, and the test rows once."""
        start = time.perf_counter()
        pool = draw_pool(self.train, min(cell.pool, len(self.train)), cell.seed)
        parts = dirichlet_split(pool, clients=cell.clients, alpha=ALPHA, seed=cell.seed)
        named = {f"client-{number}": part for number, part in enumerate(parts)}
        clients = runs.simulate(self.backbone, self.task, named, seed=cell.seed)
        federated = runs.federate(clients, ModelSettings(source="demo", dtype="float32"), self.task, cell.method)
        seconds, adapter = time.perf_counter() - start, federated.adapter
        encoded = self._scorer.encoded(self.test)
        reading = self.readings.read(encoded.prompts)
        accuracy, zero_shot = (
            Evaluation.of(self.task.labels, reading.log_probabilities(readout), encoded.labels).accuracy
            for readout in (adapter.readout, None)
        )
        traffic = federated.outcome.state.traffic
        sums = [item for item in traffic if item.step in ("statistics", "products") and item.failure is None]
        return {
            "accuracy": round(accuracy, 4),
            "zero_shot": round(zero_shot, 4),
            "bytes_up": round(sum(item.bytes_up for item in traffic) / cell.clients),
            "bytes_down": round(sum(item.bytes_down for item in traffic) / cell.clients),
            "sums_up": round(sum(item.bytes_up for item in sums) / cell.clients),
            "seconds": round(seconds, 2),
        }


def cells(arguments: argparse.Namespace) -> list[Cell]:
    grid = itertools.product(arguments.sets, arguments.pools, arguments.clients, arguments.modes, range(arguments.seeds))
    return [Cell(data, mode, pool, clients, seed, arguments.bytes) for data, pool, clients, mode, seed in grid]


def table(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Means over seeds."""
    lines = [
        "| set | pool | clients | zero-shot | mode | accuracy | sums up, KB | all up, KB | all down, KB | seconds |",
        "|---|" * 10,
    ]
    for name, pool, clients, mode in itertools.product(
        [*arguments.sets, "mean"], arguments.pools, arguments.clients, arguments.modes
    ):
        names = arguments.sets if name == "mean" else [name]
        found = [
            results[cell.name]
            for cell in cells(arguments)
            if (cell.pool, cell.clients, cell.mode) == (pool, clients, mode) and cell.data in names
        ]

        def mean(field: str, rows: list[dict[str, Any]] = found) -> float:
            return float(np.mean([row[field] for row in rows]))

        spread = f" ± {100 * np.std([row['accuracy'] for row in found], ddof=1):.1f}" if name != "mean" else ""
        numbers = (f"{mean(field) / 1000:.0f}" for field in ("sums_up", "bytes_up", "bytes_down"))
        lines.append(
            f"| {name} | {pool} | {clients} | {100 * mean('zero_shot'):.1f} | {mode} | {100 * mean('accuracy'):.1f}{spread} | "
            f"{' | '.join(numbers)} | {mean('seconds'):.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--sets", nargs="+", default=list(DEVELOPMENT))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--pools", nargs="+", type=int, default=[400, 2000])
    parser.add_argument("--clients", nargs="+", type=int, default=[10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bytes", type=float, default=BUDGET, help="of a client's sums, for each feature")
    parser.add_argument("--cache", type=Path, default=Path("runs/one-shot"), help="folder of the readings; do not share it")
    parser.add_argument("--out", type=Path, default=Path("docs/results/one-shot/development.json"))
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    arguments = parser.parse_args()
    sketch.OWN = replace(sketch.OWN, one_shot=arguments.bytes)
    results: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, group in itertools.groupby(cells(arguments), key=lambda cell: cell.data):
        missing = [cell for cell in group if cell.name not in results and not arguments.table]
        if not missing:
            continue
        stage = Stage(arguments, name)
        Scorer.read = stage.readings.read  # type: ignore[method-assign,assignment]
        for cell in missing:
            results[cell.name] = stage.run(cell)
            files.write_text(arguments.out, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
            print(cell.name, json.dumps(results[cell.name]), flush=True)
    print(table(results, arguments))


if __name__ == "__main__":
    main()
