"""Does the gate work? With shuffled training labels there is nothing to learn, so test accuracy must stay that of zero-shot.

For each seed, a pool of training rows with permuted labels is dealt to four clients, and a shipped preset with a gate runs a
few rounds. Zero-shot and the resulting adapter are evaluated on the test rows with their true labels. A seed passes if
accuracy is not below zero-shot's by more than the 95% half-width of their paired difference.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from _sets import load_labelled
from ifedicl import files, runs, seeds
from ifedicl.backbone.load import load_backbone
from ifedicl.bench.plan import SetSettings
from ifedicl.data import dirichlet_split, draw_pool
from ifedicl.demo.fetch import demo_model
from ifedicl.kinds.classify import Example
from ifedicl.settings import ModelSettings, changed, load_preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set: a folder with train.jsonl and test.jsonl")
    parser.add_argument("--preset", default="subspace")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--pool", type=int, default=120)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/shuffled-labels.json"), help="finished seeds are not run again")
    arguments = parser.parse_args()

    data = load_labelled(Path(arguments.data).name, SetSettings(source=arguments.data))
    model = ModelSettings(source=str(demo_model()), dtype=arguments.dtype)
    backbone = load_backbone(model)
    test = draw_pool(data.test, arguments.test, 0)
    raw = runs.zero_shot_adapter(backbone, model, data.task).classifier(backbone).evaluate(test)
    finished = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for seed in range(arguments.seeds):
        if str(seed) in finished:
            continue
        pool = shuffled(draw_pool(data.train, arguments.pool, seed), seed)
        sections = {"holdout": {"gate": 0.25}, "rounds": {"rounds": 4, "evaluate_every": 2}, "seed": seed}
        method = changed(load_preset(arguments.preset), sections, "benchmark")
        parts = dirichlet_split(pool, clients=4, alpha=10.0, seed=seed)
        named = {f"client-{number}": part for number, part in enumerate(parts)}
        clients = runs.simulate(backbone, data.task, named, seed=seed)
        federated = runs.federate(clients, model, data.task, method)
        gate = federated.outcome.gate
        assert gate is not None
        difference = federated.adapter.classifier(backbone).evaluate(test).hits.astype(float) - raw.hits
        half_width = 1.96 * float(difference.std(ddof=1)) / len(test) ** 0.5
        finished[str(seed)] = {
            "open": gate.is_open,
            "difference": float(difference.mean()),
            "half_width": half_width,
            "holds": bool(difference.mean() >= -half_width),
        }
        files.write_json(arguments.out, finished)
        print(f"seed {seed}: {finished[str(seed)]}", flush=True)
    holds, opened = (sum(item[key] for item in finished.values()) for key in ("holds", "open"))
    print(f"zero-shot {raw.accuracy:.1%}; not below it in {holds} of {len(finished)} seeds; the gate opened in {opened}")


def shuffled(pool: tuple[Example, ...], seed: int) -> tuple[Example, ...]:
    """The same texts with the same labels in random order."""
    order = seeds.generator(seed, "shuffled labels").permutation(len(pool))
    return tuple(replace(example, label=pool[place].label) for example, place in zip(pool, np.asarray(order), strict=True))


if __name__ == "__main__":
    main()
