"""Ridge probe: a linear classifier on the frozen model's last hidden state, in closed form from sums of all clients."""

from __future__ import annotations

import numpy as np

from ifedicl.backbone.prompts import EncodedExamples
from ifedicl.bench.costs import Meter
from ifedicl.bench.methods.base import ALL, PAPER, Measured, Passes, Point, Scope, Size, evaluate_scores, with_ones
from ifedicl.bench.setup import Setup
from ifedicl.core.readout import log_softmax
from ifedicl.core.vectors import Array32, Array64
from ifedicl.kinds.classify import as_classification
from ifedicl.metrics import Tally

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the penalty, in units of the features' mean square."""


class RidgeProbe:
    """Clients send ``XᵀX`` and ``XᵀY`` once; held-out examples choose one of five penalties.

    The sums do not depend on which client holds an example, so the split does not change the figures.
    """

    name = "ridge-probe"
    scope = Scope.SEED
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return Passes(size.training + size.held_out + size.test)

    def run(self, setup: Setup) -> Measured:
        meter, labels, clients = Meter(setup.names), len(as_classification(setup.task, "ridge").labels), setup.encoded_clients
        width = setup.backbone.width + 1
        gram, moment = np.zeros((width, width)), np.zeros((width, labels))
        for done, client in enumerate(clients, start=1):
            with meter.working("statistics"):
                features = _features(setup, client.train)
                target = np.eye(labels)[list(client.train.labels)]
                products = {"gram": features.T @ features, "moment": features.T @ target}
            sums = meter.up("statistics", {}, {name: array.astype(np.float32) for name, array in products.items()})
            gram += sums["gram"]
            moment += sums["moment"]
            setup.on_progress(done, len(clients))
        candidates = _solutions(gram, moment)
        tallies = [Tally() for _ in candidates]
        for client in clients:
            received = meter.down("evaluate", {}, {"weights": candidates})["weights"]
            if not client.selection.labels:
                continue
            with meter.working("evaluate"):
                features = _features(setup, client.selection)
                client_tallies = [Tally.of(log_softmax(features @ weights), client.selection.labels) for weights in received]
            meter.up("evaluate", {"correct": [tally.correct for tally in client_tallies]}, {})
            tallies = [total + tally for total, tally in zip(tallies, client_tallies, strict=True)]
        chosen = max(range(len(candidates)), key=lambda index: (tallies[index].correct, index))
        # The scores are read as if they were logits.
        evaluation = evaluate_scores(setup, lambda test: log_softmax(_features(setup, test) @ candidates[chosen]), meter)
        return Measured(
            {ALL: evaluation},
            meter.costs(),
            rounds=1,
            chosen_round=1,
            curve=(Point(1, tallies[chosen].accuracy, tallies[chosen].loss),),
            settings={"strengths": _STRENGTHS, "strength": _STRENGTHS[chosen]},
        )


def _features(setup: Setup, examples: EncodedExamples) -> Array64:
    """``(N, d + 1)``: the last column is 1."""
    return with_ones(setup.scorer.features(examples.prompts))


def _solutions(gram: Array64, moment: Array64) -> Array32:
    """``(5, d + 1, C)``: one solution for each penalty; the intercept has no penalty."""
    unit = np.trace(gram[:-1, :-1]) / (len(gram) - 1)
    penalty = np.diag([1.0] * (len(gram) - 1) + [0.0])
    return np.stack([np.linalg.solve(gram + strength * unit * penalty, moment) for strength in _STRENGTHS]).astype(np.float32)
