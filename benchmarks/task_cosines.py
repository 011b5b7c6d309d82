"""Cosines between signatures of real tasks, the basis for the threshold of a near hit.

Two disjoint draws of training rows of each data set are vectorised, as for two groups of clients. Prints the cosine of the two
draws of each set, and of each pair of sets (mean over draws). Nothing is calibrated and no test row is read.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from _sets import load_labelled
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.plan import SetSettings, load_plan
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.data import draw_pool
from ifedicl.demo.fetch import demo_model
from ifedicl.extract import context_vectors
from ifedicl.kinds.classify import Example, Task
from ifedicl.settings import Method, ModelSettings
from ifedicl.store.signature import reference, signature


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--rows", type=int, default=60, help="rows of each of the two draws (default: %(default)s)")
    arguments = parser.parse_args()
    backbone = load_backbone(ModelSettings(source=str(demo_model()), dtype="float32", device="cpu"))
    known = load_plan("dev", arguments.data).sets  # with label words of one token for names of several
    method, found = Method(), dict[str, tuple[Array32, Array32]]()
    centre = reference(backbone, method.vectors.read_position)
    for folder in sorted(path.parent for path in arguments.data.glob("*/train.jsonl")):
        data = load_labelled(folder.name, known.get(folder.name, SetSettings(source=str(folder))))
        pool = draw_pool(data.train, 2 * arguments.rows, 0)
        halves = pool[: arguments.rows], pool[arguments.rows :]
        first, second = (signature(Context(vectors(backbone, data.task, half, method)), centre) for half in halves)
        found[folder.name] = first, second
        print(json.dumps({"set": folder.name, "its other draw": round(float(first @ second), 3)}), flush=True)
    for one, other in combinations(found, 2):
        cosines = [float(mine @ theirs) for mine in found[one] for theirs in found[other]]
        print(json.dumps({"sets": [one, other], "cosine": round(float(np.mean(cosines)), 3)}))


def vectors(backbone: Backbone, task: Task, rows: tuple[Example, ...], method: Method) -> Array32:
    """The mean vectors of some examples."""
    scorer = Scorer(backbone, task)
    prompts = scorer.encoder.prompts([row.text for row in rows])
    labels = [task.index(row.label) for row in rows]
    return context_vectors(scorer, prompts.tokens, labels, method).mean().astype(np.float32)


if __name__ == "__main__":
    main()
