"""Lower bounds of ε that attacks prove, beside the promised ε: for a readout in private mode, and for rounds with a readout.

The attacker knows all other examples, and the example is a training example that adds to each sum as much as it may. The noise
is that of the fewest survivors without the colluders. "best test": the threshold on the best score over many runs (95%
confidence). "one run": many examples, each there with probability 1/2, guessed from a single run (Steinke, Nasr and Jagielski
2023). Shapes of SmolLM2-135M, four labels.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import files
from ifedicl.audit.guessing import game_of_releases, one_run
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.dp.accountant import Release
from ifedicl.dp.skellam import skellam
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.noise_plan import NoisePlan
from ifedicl.kinds.classify import Task
from ifedicl.settings import Method, changed, load_preset

TASK = Task(name="any", labels=("a", "b", "c", "d"))
SHAPE = ModelShape("0" * 64, 30, 576)
CANARIES = 1_000
DELTA = 1e-5


def readout(epsilon: float) -> dict[str, Any]:
    """One message and a gate."""
    return {"holdout": {"selection": 0.0, "gate": 0.15}, "privacy": _privacy(epsilon)}


def rounds(epsilon: float) -> dict[str, Any]:
    """Eight rounds on λ and β of the last layers, evaluated twice, a readout, and a gate."""
    return {
        "rounds": {"rounds": 8, "evaluate_every": 4, "select_by": "accuracy"},
        "server": {"update": "gradient", "draw": 1.0},
        "injection": {"from_depth": 0.9},
        "holdout": {"selection": 0.1, "gate": 0.1},
        "privacy": _privacy(epsilon),
    }


def _privacy(epsilon: float) -> dict[str, Any]:
    return {"mode": "private", "min_survivors": 8, "noise": {"epsilon": epsilon, "delta": DELTA}}


def releases_of(sections: dict[str, Any]) -> list[Release]:
    """All noisy sums that a training example is in."""
    method: Method = changed(load_preset("one-shot"), sections, "this benchmark")
    planned = NoisePlan.of(Manifest.of(TASK, method, SHAPE)).by_kind
    times = {"gradient": method.rounds.rounds, "noisy_statistics": 1}
    return [replace(planned[kind].release, times=number) for kind, number in times.items() if kind in planned]


def in_one_run(releases: list[Release], draw: np.random.Generator) -> float:
    """Each canary adds in a direction of its own, which no other canary uses."""
    present, scores = draw.random(CANARIES) < 0.5, np.zeros(CANARIES)
    for release in releases:
        for _ in range(release.times):
            noise = skellam(CANARIES, release.variance, draw)
            scores += (noise + present * release.sensitivity) * release.sensitivity / release.variance
    return one_run(scores, present, DELTA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20_000, help="sums with the example, and as many without it")
    parser.add_argument("--out", type=Path, default=Path("docs/results/privacy/bounds.json"))
    arguments = parser.parse_args()
    found, draw = list[dict[str, Any]](), np.random.default_rng(0)
    print("| job | promised ε | best test | one run |\n|---|---|---|---|")
    for name, sections in (("a readout and a gate", readout), ("8 rounds, a readout and a gate", rounds)):
        for epsilon in (1.0, 4.0, 8.0):
            releases = releases_of(sections(epsilon))
            bound = game_of_releases(releases, DELTA, arguments.trials, draw).bound
            single = in_one_run(releases, draw)
            found.append({"job": name, "promised": epsilon, "best_test": round(bound, 2), "one_run": round(single, 2)})
            print(f"| {name} | {epsilon:g} | {bound:.2f} | {single:.2f} |", flush=True)
    files.write_text(
        arguments.out, json.dumps({"trials": arguments.trials, "canaries": CANARIES, "rows": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
