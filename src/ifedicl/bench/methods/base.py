"""The protocol of a benchmark method, and what several methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ifedicl.adapter import Adapter
from ifedicl.backbone.prompts import EncodedExamples
from ifedicl.bench.costs import Costs, Meter
from ifedicl.bench.setup import Setup
from ifedicl.core.vectors import Array64
from ifedicl.kinds.examples import AnyEvaluation
from ifedicl.metrics import Tally

PAPER = "paper"
"""The preset of all methods but the variants of IFed-ICL: held-out parts, loss and schedule are the same for all."""
ALL = "all"
"""The name of the classifier of a method that has one classifier for all clients."""


class Scope(StrEnum):
    """What changes a method's figures; the method runs once for each."""

    SET = "set"
    SEED = "seed"
    SPLIT = "split"


@dataclass(frozen=True)
class Size:
    """Estimated size of a cell: examples of all clients together, ``test`` rows, and ``evaluations`` of a training on held-out
    examples (zero-shot included). A trained method runs ``passes`` examples forwards and backwards.
    """

    clients: int
    held_out: int
    training: int
    test: int
    passes: int
    evaluations: int


@dataclass(frozen=True)
class Passes:
    """Examples that a cell runs through the model: ``forward`` without gradients, ``training`` forwards and backwards."""

    forward: int
    training: int = 0


@dataclass(frozen=True)
class Point:
    """Figures on the held-out examples of all clients after ``round`` rounds; the loss is a mean in nats."""

    round: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Measured:
    """Result of a method in one cell.

    Attributes:
        evaluations: on the test rows, by client where each has a classifier, else one under ``"all"``.
        costs: bytes and seconds.
        rounds: rounds of communication; 0 without communication.
        chosen_round: the round whose result is tested.
        curve: held-out figures by round.
        choices: chosen on held-out examples; later cells of the same model, set and method use them.
        settings: settings of the method, for the record.
    """

    evaluations: Mapping[str, AnyEvaluation]
    costs: Costs
    rounds: int = 0
    chosen_round: int = 0
    curve: tuple[Point, ...] = ()
    choices: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


class BenchMethod(Protocol):
    """One way to label text after seeing the clients' examples.

    ``name`` is its name in plans and tables, ``preset`` the shipped settings file of its ``setup.method``.
    """

    name: str
    scope: Scope
    preset: str

    def passes(self, size: Size) -> Passes:
        """Estimate of the examples that a cell runs through the model."""
        ...

    def run(self, setup: Setup) -> Measured:
        """Measure one cell. Reads the test rows once, at the end."""
        ...


def evaluate_adapter(setup: Setup, adapter: Adapter, meter: Meter) -> AnyEvaluation:
    """Evaluate an adapter on the test rows."""
    classifier = adapter.on_model(setup.backbone)
    with meter.testing(len(setup.test)):
        return classifier.evaluate(setup.test)


def evaluate_scores(setup: Setup, score: Callable[[EncodedExamples], npt.NDArray[Any]], meter: Meter) -> AnyEvaluation:
    """Evaluate on the test rows; ``score`` returns what :meth:`AnyTask.evaluation` reads."""
    encoded = setup.scorer.encoded(setup.test)
    with meter.testing(len(setup.test)):
        scores = score(encoded)
    return setup.task.evaluation(scores, encoded.labels)


def send_tally(tally: Tally, meter: Meter) -> None:
    """Count the message in which one client sends its held-out figures."""
    meter.up("evaluate", {"examples": tally.examples, "correct": tally.correct, "loss_sum": tally.loss_sum}, {})


def with_ones(features: npt.NDArray[np.floating]) -> Array64:
    """``(N, d + 1)``: the ``(N, d)`` features and a column of ones, float64."""
    return np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], axis=1)
