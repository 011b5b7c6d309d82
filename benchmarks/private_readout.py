"""Accuracy of a readout (preset "one-shot") in open, secure and private mode, at ε = 1, 4 and 8, for 10 and 50 clients.

Every run is a whole federation: secure sums, bounded features, noise, held-out figures. Private runs have a gate; in the others
held-out examples choose between readouts and label words. What the raw model says of a text is computed once for each set and
kept in --cache, in passes of several texts; elsewhere private mode reads each text alone, which changes the last bits. Test
rows are read once, at the end of each run. Runs whose figures are in --out are not repeated. --table prints the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from _sets import load_labelled, reference_examples
from _victims import demo_backbone, public_examples
from ifedicl import files, runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.prompts import Prompts
from ifedicl.backbone.readings import Reading
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.plan import SetSettings
from ifedicl.data import dirichlet_split
from ifedicl.kinds.classify import Example, Task
from ifedicl.metrics import Evaluation
from ifedicl.settings import Method, ModelSettings, changed, load_preset

DEVELOPMENT, REPORTING = ("sst5", "clinc_domain", "sms_spam", "tweet_sentiment"), ("fpb",)
POOL, PUBLIC, ALPHA = 2_000, 600, 0.5
READOUT = {"pooled_depths": [0.5]}
EPSILONS = (1.0, 4.0, 8.0)
SURVIVORS = {10: 8, 50: 40}
"""The fewest clients of a sum, by number of clients."""


@dataclass(frozen=True)
class Cell:
    """One run: its set, privacy mode, number of clients and seed."""

    data: str
    mode: str
    epsilon: float | None
    clients: int
    seed: int

    @property
    def name(self) -> str:
        """In the file of results."""
        promised = "" if self.epsilon is None else f" {self.epsilon:g}"
        return f"{self.data} {self.mode}{promised} clients {self.clients} seed {self.seed}"

    @property
    def method(self) -> Method:
        """The preset in this mode. The same number of examples is held out in all of them."""
        privacy: dict[str, Any] = {"mode": self.mode, "min_survivors": SURVIVORS[self.clients], "min_examples": 2}
        if self.epsilon is not None:
            privacy["noise"] = {"epsilon": self.epsilon}
        sections = {
            "seed": self.seed,
            "readout": READOUT,
            "rounds": {"select_by": "accuracy"},
            "holdout": {"selection": 0.15, "gate": 0.0} if self.epsilon is None else {"selection": 0.0, "gate": 0.15},
            "privacy": privacy,
        }
        return changed(load_preset("one-shot"), sections, "this benchmark")


class RawReadings:
    """What the raw model says of one set's texts, by their tokens."""

    def __init__(self, scorer: Scorer, layers: tuple[int, ...], rows: Sequence[Example], file: Path) -> None:
        """Read all texts with ``scorer``, or take them from ``file``."""
        prompts = scorer.encoded(rows).prompts
        self._places = {tokens: place for place, tokens in enumerate(prompts.tokens)}
        if not file.exists():
            reading = scorer.read(prompts, layers)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, states=reading.states, logs=reading.logs)
        with np.load(file) as stored:
            self._reading = Reading(stored["states"], stored["logs"])
        if len(self._reading.logs) != len(rows):
            raise SystemExit(f"{file} is of other texts; remove it")

    def read(self, prompts: Prompts, _layers: tuple[int, ...] = (), *, alone: bool = False) -> Reading:
        """In place of :meth:`Scorer.read`: nothing is injected in these runs."""
        del alone
        rows = [self._places[tokens] for tokens in prompts.tokens]
        return Reading(self._reading.states[rows], self._reading.logs[rows])


class Stage:
    """One set: its texts, and the raw model's readings of them."""

    def __init__(self, arguments: argparse.Namespace, name: str) -> None:
        data = load_labelled(name, SetSettings(source=str(arguments.data / name)))
        self.task: Task = data.task
        self.backbone = demo_backbone("float32")
        self.train, self.test = data.train[:POOL], data.test
        self.public = public_examples(self.task, PUBLIC, 1)
        self._scorer = Scorer(self.backbone, self.task)
        method = changed(load_preset("one-shot"), {"readout": READOUT}, "this benchmark")
        layers = method.pooled_layers(self.backbone.layers)
        rows = (*self.train, *self.test, *self.public, *reference_examples(self.task))
        self.readings = RawReadings(self._scorer, layers, rows, arguments.cache / f"{name}-raw-float32.npz")

    def evaluate(self, adapter: Adapter) -> Evaluation:
        """On the test rows."""
        encoded = self._scorer.encoded(self.test)
        logs = self.readings.read(encoded.prompts).log_probabilities(adapter.readout)
        return Evaluation.of(self.task.labels, logs, encoded.labels)


def run(stage: Stage, cell: Cell) -> dict[str, Any]:
    """One federation, and the test rows once."""
    start = time.perf_counter()
    parts = dirichlet_split(stage.train, clients=cell.clients, alpha=ALPHA, seed=cell.seed)
    clients = runs.simulate(stage.backbone, stage.task, {f"client-{n}": part for n, part in enumerate(parts)}, seed=cell.seed)
    model = ModelSettings(source="demo", dtype="float32")
    public = [example.text for example in stage.public]
    federated = runs.federate(clients, model, stage.task, cell.method, public=public)
    adapter, outcome = federated.adapter, federated.outcome
    evaluation = stage.evaluate(adapter)
    ungated = stage.evaluate(replace(adapter, readout=outcome.state.readout))
    first = [item for item in outcome.state.traffic if item.client == "client-0"]
    return {
        "accuracy": round(evaluation.accuracy, 4),
        "macro_f1": round(evaluation.macro_f1, 4),
        "accuracy_without_gate": round(ungated.accuracy, 4),
        "zero_shot": round(stage.evaluate(replace(adapter, readout=None)).accuracy, 4),
        "gate_open": outcome.gate is not None and outcome.gate.is_open,
        "epsilon": adapter.provenance.get("privacy", {}).get("epsilon"),
        "bytes_up": sum(item.bytes_up for item in first),
        "bytes_down": sum(item.bytes_down for item in first),
        "seconds_after_reading": round(time.perf_counter() - start, 1),
    }


def cells(arguments: argparse.Namespace) -> list[Cell]:
    modes: list[tuple[str, float | None]] = [("open", None), ("secure", None), *(("private", each) for each in EPSILONS)]
    grid = itertools.product(arguments.sets, arguments.clients, range(arguments.seeds), modes)
    return [Cell(data, mode, promised, count, seed) for data, count, seed, (mode, promised) in grid]


def table(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Mean accuracy over seeds, its standard deviation, and the difference to open, in points."""
    columns: list[tuple[str, float | None]] = [("open", None), ("secure", None), *(("private", each) for each in EPSILONS)]
    heads = ["open", "secure", *(f"ε = {each:g}" for each in EPSILONS)]
    lines = [f"| set | clients | zero-shot | {' | '.join(heads)} |", f"|{'---|' * (3 + len(heads))}"]
    for name, count in itertools.product(arguments.sets, arguments.clients):
        found = [
            [results[Cell(name, mode, promised, count, seed).name] for seed in range(arguments.seeds)]
            for mode, promised in columns
        ]
        means = [100 * float(np.mean([item["accuracy"] for item in items])) for items in found]
        spreads = [100 * float(np.std([item["accuracy"] for item in items], ddof=1)) for items in found]
        entries = [f"{mean:.1f} ± {spread:.1f}" for mean, spread in zip(means, spreads, strict=True)]
        lines.append(f"| {name} | {count} | {100 * found[0][0]['zero_shot']:.1f} | {' | '.join(entries)} |")
    for count in arguments.clients:
        names = [name for name in arguments.sets if name in DEVELOPMENT]
        places = list(itertools.product(names, range(arguments.seeds)))
        mean = [
            100 * np.mean([results[Cell(name, mode, promised, count, seed).name]["accuracy"] for name, seed in places])
            for mode, promised in columns
        ]
        lines.append(f"| mean of the development sets | {count} | | {' | '.join(f'{each:.1f}' for each in mean)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--sets", nargs="+", default=[*DEVELOPMENT, *REPORTING])
    parser.add_argument("--clients", nargs="+", type=int, choices=sorted(SURVIVORS), default=sorted(SURVIVORS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("runs/privacy"), help="folder of the readings; do not share it")
    parser.add_argument("--out", type=Path, default=Path("docs/results/privacy/readout.json"))
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.table:
        print(table(results, arguments))
        return
    for name, group in itertools.groupby(cells(arguments), key=lambda cell: cell.data):
        missing = [cell for cell in group if cell.name not in results]
        if not missing:
            continue
        stage = Stage(arguments, name)
        Scorer.read = stage.readings.read  # type: ignore[method-assign,assignment]
        for cell in missing:
            results[cell.name] = run(stage, cell)
            files.write_text(arguments.out, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
            print(cell.name, json.dumps(results[cell.name]), flush=True)
    if all(math.isfinite(item["accuracy"]) for item in results.values()):
        print(table(results, arguments))


if __name__ == "__main__":
    main()
