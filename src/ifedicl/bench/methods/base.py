"""What every method of the benchmark is: something that labels test text after seeing the clients' examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from ifedicl.bench.costs import Costs
from ifedicl.bench.setup import Setup
from ifedicl.metrics import Evaluation


class Scope(StrEnum):
    """What moves a method's figures; it is run once for each."""

    SET = "set"
    SEED = "seed"
    SPLIT = "split"


@dataclass(frozen=True)
class Size:
    """Of a cell, before its data are read.

    Attributes:
        clients: how many.
        held_out: examples of all clients that choose the round.
        training: examples of all clients that are trained on.
        test: test rows.
        passes: examples that a trained method runs forwards and backwards.
        evaluations: on held-out examples in one training, zero-shot included.
    """

    clients: int
    held_out: int
    training: int
    test: int
    passes: int
    evaluations: int


@dataclass(frozen=True)
class Passes:
    """Examples that a cell runs through the model: what its time depends on.

    Attributes:
        forward: without gradients.
        training: forwards and backwards.
    """

    forward: int
    training: int = 0


@dataclass(frozen=True)
class Point:
    """Held-out figures of all clients after so many rounds.

    Attributes:
        round: completed rounds.
        accuracy: fraction correct.
        loss: mean, in nats.
    """

    round: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Measured:
    """What a method came to in one cell.

    Attributes:
        evaluations: on the test rows, by client where each has a classifier of its own, else one under ``"all"``.
        costs: bytes and seconds.
        rounds: of communication; 0 where there is none.
        chosen_round: the one whose result was tested.
        curve: held-out figures round by round.
        choices: what was chosen on held-out examples and holds for later cells of the same model, set and method.
        settings: of the method, for the record.
    """

    evaluations: Mapping[str, Evaluation]
    costs: Costs
    rounds: int = 0
    chosen_round: int = 0
    curve: tuple[Point, ...] = ()
    choices: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


class BenchMethod(Protocol):
    """One way to label text.

    Attributes:
        name: in plans and tables.
        scope: what moves its figures.
        preset: the shipped settings file that its ``setup.method`` comes from.
    """

    name: str
    scope: Scope
    preset: str

    def passes(self, size: Size) -> Passes:
        """What a cell runs through the model, about."""
        ...

    def run(self, setup: Setup) -> Measured:
        """Measure one cell. The test rows are read once, at the end."""
        ...


PAPER = "paper"
"""The preset of all methods but the variants of ours: held-out parts, loss and schedule are the same for all."""
ALL = "all"
"""The one classifier of a method that has no others."""
