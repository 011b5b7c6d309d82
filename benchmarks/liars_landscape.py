"""Which lie defeats which aggregation, with a loss in closed form: each cell with many seeds, in seconds.

Ten clients, two of which lie, as in ``liars.py``, but without a model: a client's loss is the distance of the coefficients from
its optimum. A run is sunk if the mean loss of the eight honest clients ends above that of zero-shot. With a small spread the
clients' optima nearly agree. With a large one they are as far from each other as from zero-shot.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from _landscape import FORM, NAMES, SHAPE, Landscape
from _liars import LIES, Colluding, Lie
from ifedicl.core.coefficients import Coefficients
from ifedicl.federation.coordinator import Coordinator
from ifedicl.kinds.classify import Task
from ifedicl.settings import Method, validated

LIARS = ("i", "j")
RULES = ("mean", "trimmed", "median", "bounded")
TASK = Task(name="mood", labels=("good", "bad"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--spreads", type=float, nargs="*", default=[0.1, 0.5])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    attacks: dict[str, tuple[Lie | None, Lie | None]] = {
        "none": (None, None),
        **{f"updates {name}": (lie, None) for name, lie in LIES.items()},
        **{f"vectors {name}": (None, lie) for name, lie in LIES.items()},
    }
    for spread in arguments.spreads:
        cells = {
            (attack, rule): [run(rule, *lies, spread, seed, arguments.rounds) for seed in range(arguments.seeds)]
            for attack, lies in attacks.items()
            for rule in RULES
        }
        if arguments.json:
            print(json.dumps({"spread": spread, "cells": {" | ".join(key): value for key, value in cells.items()}}))
            continue
        print(f"\nspread {spread:g}: honest loss over that of zero-shot, median of {arguments.seeds} seeds (sunk runs)\n")
        print("| liars | " + " | ".join(RULES) + " |\n" + "|---" * (len(RULES) + 1) + "|")
        for attack in attacks:
            shown = [f"{np.median(cells[attack, rule]):.2g} ({sum(r > 1 for r in cells[attack, rule])})" for rule in RULES]
            print(f"| {attack} | {' | '.join(shown)} |")


def run(rule: str, updates: Lie | None, vectors: Lie | None, spread: float, seed: int, rounds: int) -> float:
    """The honest clients' loss in the chosen round, without a gate, over that of zero-shot."""
    landscape = Landscape(spread=spread, seed=seed)
    engine = landscape if updates is None and vectors is None else Colluding(landscape, LIARS, updates=updates, vectors=vectors)
    outcome = Coordinator(engine, TASK, method_of(rule, rounds), SHAPE).run()
    context = outcome.context.vectors.astype(np.float64)

    def loss(coefficients: Coefficients) -> float:
        return float(np.mean([landscape.loss(name, coefficients, context) for name in NAMES if name not in LIARS]))

    return loss(outcome.state.best) / loss(Coefficients.identity(FORM))


def method_of(rule: str, rounds: int) -> Method:
    robust = {} if rule == "mean" else {"robust": {"rule": rule}}
    return validated(Method, {"rounds": {"rounds": rounds}, **robust}, "benchmark")


if __name__ == "__main__":
    main()
