"""Ridge probe: a linear classifier on the frozen model's last hidden state, in closed form from sums of all clients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.encoding import EncodedExamples
from ifedicl.bench.costs import Meter
from ifedicl.bench.methods.base import ALL, PAPER, Measured, Passes, Point, Scope, Size
from ifedicl.bench.setup import Setup
from ifedicl.core.readout import log_softmax
from ifedicl.core.vectors import Array64
from ifedicl.metrics import Evaluation, Tally

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the penalty, in units of the features' mean square."""


class RidgeProbe:
    """Clients send ``XᵀX`` and ``XᵀY`` once; five penalties are compared on held-out examples.

    The sums do not depend on who holds an example, so the split moves nothing but the bytes' addressee.
    """

    name = "ridge-probe"
    scope = Scope.SEED
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return Passes(size.training + size.held_out + size.test)

    def run(self, setup: Setup) -> Measured:
        meter, labels = Meter(setup.names), len(setup.task.labels)
        width = setup.backbone.width + 1
        gram, moment = np.zeros((width, width)), np.zeros((width, labels))
        for place, hand in enumerate(setup.hands):
            with meter.working("statistics"):
                features = _features(setup, hand.train)
                target = np.eye(labels)[list(hand.train.labels)]
                own = {"gram": features.T @ features, "moment": features.T @ target}
            sums = meter.up("statistics", {}, {name: array.astype(np.float32) for name, array in own.items()})
            gram += sums["gram"]
            moment += sums["moment"]
            setup.on_progress(place + 1, len(setup.hands))
        candidates = _solutions(gram, moment)
        tallies = [Tally() for _ in candidates]
        for hand in setup.hands:
            received = meter.down("evaluate", {}, {"weights": candidates})["weights"]
            if not hand.selection.labels:
                continue
            with meter.working("evaluate"):
                features = _features(setup, hand.selection)
                own_tallies = [Tally.of(_logs(features, weights), hand.selection.labels) for weights in received]
            meter.up("evaluate", {"correct": [tally.correct for tally in own_tallies]}, {})
            tallies = [tally + own for tally, own in zip(tallies, own_tallies, strict=True)]
        chosen = max(range(len(candidates)), key=lambda place: (tallies[place].correct, place))
        part = setup.scorer.encoded(setup.test)
        with meter.testing(len(setup.test)):
            logs = _logs(_features(setup, part), candidates[chosen])
        return Measured(
            {ALL: Evaluation.of(setup.task.labels, logs, part.labels)},
            meter.costs(),
            rounds=1,
            chosen_round=1,
            curve=(Point(1, tallies[chosen].accuracy, tallies[chosen].loss),),
            settings={"strengths": _STRENGTHS, "strength": _STRENGTHS[chosen]},
        )


def _features(setup: Setup, part: EncodedExamples) -> Array64:
    """``(N, d + 1)``: the last one is 1."""
    features = setup.scorer.features(part.prompts).astype(np.float64)
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _solutions(gram: Array64, moment: Array64) -> npt.NDArray[np.float32]:
    """``(5, d + 1, C)``: one for each penalty; the intercept is not penalised."""
    unit = np.trace(gram[:-1, :-1]) / (len(gram) - 1)
    penalty = np.diag([1.0] * (len(gram) - 1) + [0.0])
    return np.stack([np.linalg.solve(gram + strength * unit * penalty, moment) for strength in _STRENGTHS]).astype(np.float32)


def _logs(features: Array64, weights: npt.NDArray[np.float32]) -> Array64:
    """``(N, C)``: the scores as if they were logits."""
    return log_softmax(features @ weights)
