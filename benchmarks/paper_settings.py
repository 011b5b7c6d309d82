"""IFed-ICL as in the paper (``paper.toml``) against zero-shot: the table of ``docs/results.md``.

For each data set and seed, a pool of 400 training examples, with the held-out ones, is dealt to 10 clients by Dirichlet(0.5).
The shipped preset ``paper`` runs unchanged. Zero-shot and the adapter each read the test rows once. Finished cells are stored
in ``--out`` with the commit of the settings and are not run again.

A data set is a folder with ``train.jsonl``, ``test.jsonl`` (``text`` and ``label``) and ``meta.json`` (``labels``,
``template``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import files, runs
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.data import read_examples
from ifedicl.demo.fetch import demo_model
from ifedicl.kinds.classify import Task
from ifedicl.metrics import Evaluation, paired_p
from ifedicl.report import traffic_by_client
from ifedicl.settings import ModelSettings, SplitSettings, load_preset

SPLIT = SplitSettings(clients=10, alpha=0.5, pool=400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds the data sets")
    parser.add_argument("--sets", nargs="+", default=["snips", "subj", "agnews"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("docs/results/paper-settings"))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--preset", default="paper")
    arguments = parser.parse_args()
    model = ModelSettings(source=str(demo_model()), dtype=arguments.dtype)
    backbone = load_backbone(model)
    for seed in arguments.seeds:
        for name in arguments.sets:
            cell = arguments.out / f"{arguments.preset}-{backbone.dtype}-{name}-{seed}.json"
            if not cell.exists():
                files.write_json(cell, run_cell(arguments.data / name, seed, arguments.preset, backbone, model))
                print(f"{cell}: {json.loads(cell.read_text())['accuracy']}", flush=True)
    finished = sorted(arguments.out.glob(f"{arguments.preset}-{backbone.dtype}-*.json"))
    print("\n".join(table([json.loads(cell.read_text()) for cell in finished])))


def run_cell(folder: Path, seed: int, preset: str, backbone: Backbone, model: ModelSettings) -> dict[str, Any]:
    """One data set and seed."""
    meta = json.loads((folder / "meta.json").read_text())
    task = Task(name=folder.name, labels=meta["labels"], template=meta["template"])
    method = load_preset(preset).model_copy(update={"seed": seed})
    clients = runs.simulated_clients(read_examples(folder / "train.jsonl", task), SPLIT, seed)
    start = time.perf_counter()
    federated = runs.federate(runs.simulate(backbone, task, clients, seed=seed), model, task, method)
    seconds = time.perf_counter() - start
    test = read_examples(folder / "test.jsonl", task)
    zero_shot = runs.zero_shot_adapter(backbone, model, task).classifier(backbone).evaluate(test)
    adapter = federated.adapter.classifier(backbone).evaluate(test)
    rounds = len(federated.outcome.state.history)
    traffic = traffic_by_client(federated.outcome.state.traffic, rounds)
    return {
        "set": folder.name,
        "seed": seed,
        "commit": commit(),
        "preset": preset,
        "dtype": backbone.dtype,
        "rounds": rounds,
        "chosen_round": federated.outcome.chosen_round,
        "accuracy": {"zero-shot": zero_shot.accuracy, "adapter": adapter.accuracy},
        "macro_f1": {"zero-shot": zero_shot.macro_f1, "adapter": adapter.macro_f1},
        "hits": {"zero-shot": hits(zero_shot), "adapter": hits(adapter)},
        "bytes_per_client": {
            "vectors_up": float(np.mean([row.setup_up for row in traffic])),
            "vectors_down": float(np.mean([row.setup_down for row in traffic])),
            "round_up": float(np.mean([row.round_up for row in traffic])),
            "round_down": float(np.mean([row.round_down for row in traffic])),
        },
        "seconds": seconds,
    }


def table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a row for each data set, over seeds; p by sign flips of the per-example difference, averaged over seeds."""
    yield "| data set | seeds | zero-shot accuracy / F1 % | IFed-ICL accuracy / F1 % | difference, by seed | paired p |"
    yield "|---|---|---|---|---|---|"
    commits = sorted({cell["commit"] for cell in cells})
    for name in dict.fromkeys(cell["set"] for cell in cells):
        rows = [cell for cell in cells if cell["set"] == name]
        hits_by = {
            key: np.mean([[int(hit) for hit in cell["hits"][key]] for cell in rows], axis=0) for key in ("zero-shot", "adapter")
        }
        figures = {
            key: " / ".join(f"{100 * np.mean([cell[kind][key] for cell in rows]):.1f}" for kind in ("accuracy", "macro_f1"))
            for key in ("zero-shot", "adapter")
        }
        gains = ", ".join(f"{100 * (cell['accuracy']['adapter'] - cell['accuracy']['zero-shot']):+.1f}" for cell in rows)
        p = paired_p(hits_by["adapter"], hits_by["zero-shot"])
        yield f"| {name} | {len(rows)} | {figures['zero-shot']} | {figures['adapter']} | {gains} | {p:.4f} |"
    yield f"\nSettings of commit {', '.join(commits)}."


def hits(evaluation: Evaluation) -> str:
    """A 1 or 0 for each test row, in order."""
    return "".join(str(int(hit)) for hit in evaluation.hits)


def commit() -> str:
    """The commit of the settings, marked if the sources have changes."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "HEAD") or "unknown") + ("-dirty" if git("status", "--porcelain", "--", "../src") else "")


if __name__ == "__main__":
    main()
