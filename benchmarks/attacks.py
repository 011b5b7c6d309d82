"""Success of the attacks of `ifedicl audit` with and without defences, on more real text.

The attackers learn from the demo's sentences, never from the data sets. Vectors are read at the label word, as in the paper.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from _victims import cast, demo_backbone, parser, private_set, public_examples
from ifedicl import files
from ifedicl.audit.markdown import summary
from ifedicl.audit.suite import Evidence, first_gradients, run_attacks
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.settings import Method


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--updates", type=int, default=100, help="updates of each side (default: %(default)s)")
    arguments.add_argument("--trials", type=int, default=1000, help="of each membership game (default: %(default)s)")
    chosen = arguments.parse_args()
    for name in chosen.sets:
        start = time.perf_counter()
        known = cast(chosen, name, "label")
        evidence = Evidence(known.private, known.public, *gradients(chosen, name, known.public.vectors.mean(axis=0)))
        tables = run_attacks(evidence, demo_backbone("bfloat16"), trials=chosen.trials, seed=chosen.seed)
        facts = {
            "set": name,
            "examples": len(known.private),
            "public": len(known.public),
            "updates": chosen.updates,
            "trials": chosen.trials,
            "seed": chosen.seed,
            "model": "SmolLM2-135M-Instruct",
            "vectors": "float32",
            "updates_dtype": "bfloat16",
            "seconds": round(time.perf_counter() - start),
        }
        files.write_json(chosen.out / f"attacks-{name}-{chosen.seed}.json", facts | rounded(tables))
        print(json.dumps(facts), *summary(tables), sep="\n", flush=True)


def gradients(arguments: argparse.Namespace, name: str, centre: Array32) -> tuple[Array32, Array32]:
    """Gradients of the first private and the first public texts in the first round."""
    file = arguments.cache / f"{name}-updates-{arguments.updates}-{arguments.seed}-bfloat16.npz"
    if not file.exists():
        data, private = private_set(arguments, name)
        scorer = Scorer(demo_backbone("bfloat16"), data.task)
        sides = {"private": private, "public": public_examples(data.task, arguments.public, arguments.seed)}
        context = Context(centre.astype(np.float32))
        rows = {side: first_gradients(scorer, texts[: arguments.updates], context, Method()) for side, texts in sides.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, private=rows["private"], public=rows["public"])
    with np.load(file) as stored:
        return stored["private"], stored["public"]


def rounded(tables: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    """The tables with three significant digits."""
    return {
        name: [
            {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in row.items()} for row in rows
        ]
        for name, rows in tables.items()
    }


if __name__ == "__main__":
    main()
