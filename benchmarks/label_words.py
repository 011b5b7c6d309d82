"""Claim: label words of several tokens that share the prompt make labelling and calibration three times as fast or more.

First side: one row for each path of the label words' tree, as for models whose rows cannot branch. Second side: one row for
each prompt, with the tree as branches after it. Both label the same prompts with λ and β at every write of every layer, and
take the same calibration steps, with the loss over the labels. Ten labels of two or three tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from _pairs import Bench, Claim, bench, compare, parser, report, timed
from ifedicl.backbone.scoring import Scorer
from ifedicl.kinds.classify import Task
from ifedicl.settings import CalibrationSettings, Method

TASK = Task(
    name="made-up topics",
    labels=(
        "home insurance",
        "car insurance claim",
        "credit card",
        "credit card fraud",
        "savings account",
        "cash withdrawal fee",
        "lost luggage",
        "late delivery",
        "broken screen repair",
        "spam call",
    ),
    template="Message: {text}\nTopic:",
)


def main() -> None:
    arguments = parser(__doc__).parse_args()
    method = Method(calibration=CalibrationSettings(local_steps=1, loss="labels"))
    row = replace(bench(arguments, TASK), method=method)
    assert row.backbone.branch_limit, "rows of this model cannot branch: there is nothing to compare"
    paths = replace(row, scorer=Scorer(replace(row.backbone, branch_limit=0), TASK))

    def labelled(setup: Bench) -> np.ndarray:
        with setup.injected():
            return setup.scorer.log_probabilities(setup.prompts)

    difference = np.abs(labelled(row) - labelled(paths)).max()
    comparisons = [
        compare(Claim(f"{work} by paths / {work} in one row", at_least=3.0), timed(first), timed(second), arguments.pairs)
        for work, first, second in (
            ("labelling", lambda _: labelled(paths), lambda _: labelled(row)),
            ("calibration step", paths.step, row.step),
        )
    ]
    tree = row.scorer.encoder.tree
    facts = {"labels": len(TASK.labels), "paths": len(tree.paths), "nodes": len(tree.nodes)}
    report("label_words", arguments, comparisons, **facts, largest_difference=f"{difference:.1e}")


if __name__ == "__main__":
    main()
