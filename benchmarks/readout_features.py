"""Which states should a readout use? Ridge regression on the frozen model's states at several depths.

For each data set, a pool of training rows is fitted and as many other training rows measure it; the test rows are never read.
The features are the last hidden state alone, then with the text's mean state at each depth, in the form of the readout. Five
folds of the pool choose the penalty. Meant for the development sets.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from _sets import load_labelled
from ifedicl.backbone.load import load_backbone
from ifedicl.backbone.readings import Reading
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.plan import load_plan
from ifedicl.core.penalties import PENALTIES
from ifedicl.core.readout import Readout, features
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.sketch import Directions
from ifedicl.core.units import Units
from ifedicl.data import draw_pool
from ifedicl.demo.fetch import demo_model
from ifedicl.kinds.classify import Example
from ifedicl.settings import ModelSettings

FOLDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--sets", nargs="+", default=["clinc_domain", "sst5", "sms_spam"], help="of the plan `dev`")
    parser.add_argument("--depths", nargs="+", type=float, default=[0.27, 0.4, 0.5, 0.67, 0.8, 1.0])
    parser.add_argument("--rows", type=int, default=400, help="rows of the pool, and of the measurement")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = ModelSettings(source=str(demo_model()), dtype="float32", device="cpu")
    backbone = load_backbone(model)
    plan = load_plan("dev", arguments.data)
    for name in arguments.sets:
        data = load_labelled(name, plan.sets[name])
        pool = draw_pool(data.train, arguments.rows, arguments.seed)
        texts = {example.text for example in pool}
        others = [example for example in data.train if example.text not in texts]
        measured = draw_pool(others, min(arguments.rows, len(others)), arguments.seed)
        scorer = Scorer(backbone, data.task)
        labels = [np.array([data.task.index(row.label) for row in rows]) for rows in (pool, measured)]
        layers = {depth: (max(1, round(depth * backbone.layers)),) for depth in arguments.depths}
        for depth, layer in [(0.0, ()), *layers.items()]:
            known, unseen = (_read(scorer, rows, layer) for rows in (pool, measured))
            right, penalty = _chosen(known, labels[0], len(data.task.labels))
            readout = _solved(known, labels[0], len(data.task.labels))[penalty]
            accuracy = float((_scores(readout, unseen).argmax(axis=1) == labels[1]).mean())
            result = {"set": name, "depth": depth, "folds": round(right, 3), "accuracy": round(accuracy, 3)}
            print(json.dumps(result | {"penalty": PENALTIES[penalty]}), flush=True)


def _read(scorer: Scorer, rows: tuple[Example, ...], layers: tuple[int, ...]) -> Reading:
    return scorer.read(scorer.encoder.prompts([row.text for row in rows]), layers)


def _solved(reading: Reading, labels: np.ndarray, classes: int) -> list[Readout]:
    rows = features(reading.states, reading.logs)
    whole = Directions.of([rows.shape[1] - classes], classes, 2 * rows.shape[1], 0)  # the sketch is the Gram matrix
    return ReadoutSums.of(rows, labels, classes, Units.of(rows), whole).solve(whole)


def _scores(readout: Readout, reading: Reading) -> np.ndarray:
    return readout.log_probabilities(reading.states, reading.logs)


def _chosen(reading: Reading, labels: np.ndarray, classes: int) -> tuple[float, int]:
    """The accuracy over the folds with the best penalty, and the penalty's position."""
    fold, right = np.arange(len(labels)) % FOLDS, np.zeros(len(PENALTIES))
    for number in range(FOLDS):
        inside, outside = (Reading(reading.states[rows], reading.logs[rows]) for rows in (fold != number, fold == number))
        for position, readout in enumerate(_solved(inside, labels[fold != number], classes)):
            right[position] += (_scores(readout, outside).argmax(axis=1) == labels[fold == number]).sum()
    return float(right.max() / len(labels)), int(right.argmax())


if __name__ == "__main__":
    main()
