"""The blend against the mix of lowest held-out loss, by pool: `python benchmarks/blend.py FOLDER --cache CACHE`.

FOLDER holds the development sets. Only their training rows are read, once, by the frozen SmolLM2-135M in float32; features are
kept in CACHE. A pool is drawn, 15% of it is held out, a readout is fitted on the rest, and 400 other training rows measure
loss, accuracy and expected calibration error of the label words, of the mix of lowest held-out loss and of the blend,
over five draws.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from _sets import load_labelled
from _victims import demo_backbone
from ifedicl.backbone.readings import Reading
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.plan import SetSettings, load_plan
from ifedicl.core.blend import blended, mixes
from ifedicl.core.readout import Readout, features
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.sketch import Directions
from ifedicl.core.units import Units
from ifedicl.metrics import Evaluation

SETS = ("sst5", "clinc_domain", "sms_spam", "tweet_sentiment")
_LAYER, _MEASURED, _DRAWS, _POOLS = 15, 400, 5, (12, 100, 400)


Own: TypeAlias = dict[str, npt.NDArray[Any]]


def features_of(name: str, folder: Path, cache: Path) -> Own:
    """States ``(N, 2d)``, log-probabilities ``(N, C)`` and labels ``(N,)`` of all training rows."""
    file = cache / f"{name}.npz"
    if not file.exists():
        known = load_plan("dev", folder).sets
        data = load_labelled(name, known[name] if name in known else SetSettings(source=str(folder / name)))
        scorer = Scorer(demo_backbone("float32"), data.task)
        rows = scorer.encoded(data.train)
        reading = scorer.read(rows.prompts, (_LAYER,))
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, states=reading.states, logs=reading.logs, labels=np.array(rows.labels))
    return dict(np.load(file))


def figures(own: Own, pool: int, draw: int) -> dict[str, Evaluation]:
    """Of each rule, in one draw."""
    order = np.random.default_rng([pool, draw]).permutation(len(own["labels"]))
    held_out = max(1, round(0.15 * pool))
    selection, train, test = order[:held_out], order[held_out:pool], order[pool : pool + _MEASURED]
    states, logs, labels, classes = own["states"], own["logs"], own["labels"], own["logs"].shape[1]
    known, width = features(states[train], logs[train]), states.shape[1] // 2
    directions = Directions.of([width, width], classes, 2 * width + classes, 0)  # the whole Gram matrix
    sums = ReadoutSums.of(known, labels[train], classes, Units.of(known), directions)
    readouts = sums.solve(directions, (_LAYER,))
    tried = [None, *mixes(readouts)]

    def evaluated(rows: npt.NDArray[np.int64], readout: Readout | None) -> Evaluation:
        scores = Reading(states[rows], logs[rows]).log_probabilities(readout)
        return Evaluation.of([str(label) for label in range(classes)], scores, labels[rows].tolist())

    losses = [held_out * evaluated(selection, readout).loss for readout in tried]
    rules = {"label words": None, "lowest loss": tried[int(np.argmin(losses))], "blend": blended(readouts, losses)}
    return {name: evaluated(test, readout) for name, readout in rules.items()}


def main() -> None:
    """A table in Markdown: loss / accuracy / calibration error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/blend"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    arguments = parser.parse_args()
    print("| set | pool | label words | lowest loss | blend |\n|---|---:|---|---|---|")
    for name in arguments.sets:
        own = features_of(name, arguments.folder, arguments.cache)
        for pool in _POOLS:
            rows: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
            for draw in range(_DRAWS):
                for rule, item in figures(own, pool, draw).items():
                    rows[rule].append((item.loss, 100 * item.accuracy, 100 * item.confidence.calibration_error))
            means = (np.mean(rows[rule], axis=0) for rule in rows)
            cells = " | ".join(f"{loss:.3f} / {right:.1f} / {error:.0f}" for loss, right, error in means)
            print(f"| {name} | {pool} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
