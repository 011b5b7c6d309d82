"""Affine map of the label logits: ``C × (C + 1)`` numbers on top of zero-shot, fitted by all clients together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from ifedicl.backbone.prompts import EncodedExamples
from ifedicl.bench.costs import Meter
from ifedicl.bench.methods.base import ALL, PAPER, Measured, Passes, Point, Scope, Size, evaluate_scores, send_tally, with_ones
from ifedicl.bench.setup import Setup
from ifedicl.core.readout import log_softmax
from ifedicl.core.vectors import Array64
from ifedicl.kinds.classify import as_classification
from ifedicl.metrics import Tally

_STRENGTHS = (1e-3, 1e-2, 1e-1)
_STRENGTH = "strength"
_MAX_ITERATIONS = 30

_Inputs = tuple[Array64, tuple[int, ...]]
"""One client's logits ``(N, C + 1)`` and labels."""


@dataclass(frozen=True)
class _Fit:
    weights: Array64  # (C, C + 1)
    meter: Meter
    rounds: int
    held_out: Tally
    strength: float


class LogitAffine:
    """Clients compute their label logits once and send loss and gradient sums; the server runs L-BFGS.

    The problem is convex, and its sums do not depend on which client holds an example. The held-out examples of the first cell
    of each model and set choose one of three strengths of the pull towards the identity.
    """

    name = "logit-affine"
    scope = Scope.SEED
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return Passes(size.training + size.held_out + size.test)

    def run(self, setup: Setup) -> Measured:
        shared = Meter(setup.names)
        train, held_out = [], []
        for done, client in enumerate(setup.encoded_clients, start=1):
            with shared.working("logits"):
                train.append((_inputs(setup, client.train), client.train.labels))
                held_out.append((_inputs(setup, client.selection), client.selection.labels))
            setup.on_progress(done, len(setup.names))
        strengths = (setup.choices[_STRENGTH],) if _STRENGTH in setup.choices else _STRENGTHS
        fits = [_fit(setup, train, held_out, strength) for strength in strengths]
        best = min(fits, key=lambda fit: fit.held_out.loss if fit.held_out.examples else 0.0)
        evaluation = evaluate_scores(setup, lambda test: _logs(_inputs(setup, test), best.weights), best.meter)
        best.meter.add(shared)
        return Measured(
            {ALL: evaluation},
            best.meter.costs(),
            rounds=best.rounds,
            chosen_round=best.rounds,
            curve=(Point(best.rounds, best.held_out.accuracy, best.held_out.loss),),
            choices={_STRENGTH: best.strength},
            settings={"strengths": _STRENGTHS, _STRENGTH: best.strength},
        )


def _fit(setup: Setup, train: Sequence[_Inputs], held_out: Sequence[_Inputs], strength: float) -> _Fit:
    meter, labels = Meter(setup.names), len(as_classification(setup.task, "affine").labels)
    identity = np.eye(labels, labels + 1)
    examples = sum(len(truth) for _, truth in train)
    rounds = 0

    def objective(flat: Array64) -> tuple[float, Array64]:
        """One round: the mean loss of all clients' examples and its gradient."""
        nonlocal rounds
        rounds += 1
        weights = flat.reshape(identity.shape)
        loss, gradient = 0.0, np.zeros_like(weights)
        for inputs, truth in train:
            received = meter.down("update", {}, {"weights": weights.astype(np.float32)})["weights"]
            with meter.working("update"):
                client_loss, client_gradient = _sums(inputs, truth, received.astype(np.float64))
            reply = meter.up("update", {"loss": client_loss}, {"gradient": client_gradient.astype(np.float32)})
            loss += client_loss
            gradient += reply["gradient"]
        pull = weights - identity
        return loss / examples + strength * float((pull**2).sum()), (gradient / examples + 2 * strength * pull).ravel()

    solved = minimize(objective, identity.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS})
    weights = solved.x.reshape(identity.shape)
    total = Tally()
    for inputs, truth in held_out:
        received = meter.down("evaluate", {}, {"weights": weights.astype(np.float32)})["weights"]
        if truth:
            with meter.working("evaluate"):
                tally = Tally.of(_logs(inputs, received.astype(np.float64)), truth)
            send_tally(tally, meter)
            total += tally
    return _Fit(weights, meter, rounds, total, strength)


def _inputs(setup: Setup, examples: EncodedExamples) -> Array64:
    """``(N, C + 1)``: zero-shot log-probabilities of the labels, and 1."""
    return with_ones(setup.scorer.scores(examples))


def _logs(inputs: Array64, weights: Array64) -> Array64:
    return log_softmax(inputs @ weights.T)


def _sums(inputs: Array64, truth: Sequence[int], weights: Array64) -> tuple[float, Array64]:
    """Sum of the losses and their gradient ``(C, C + 1)``; both are zero for a client without examples."""
    logs = _logs(inputs, weights)
    error = np.exp(logs)
    error[np.arange(len(truth)), list(truth)] -= 1
    return float(-logs[np.arange(len(truth)), list(truth)].sum()), error.T @ inputs
