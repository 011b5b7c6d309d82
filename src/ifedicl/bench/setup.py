"""What a method is given in one cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ifedicl import runs
from ifedicl.backbone.encoding import EncodedExamples
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.data import Example, Role, split_roles
from ifedicl.federation.client import Client
from ifedicl.settings import Method, ModelSettings
from ifedicl.task import Task


def nothing(done: int, total: int) -> None:
    """The progress of those who do not watch."""


@dataclass(frozen=True)
class Hand:
    """One client's examples for methods that are not ours: the same roles as :class:`~ifedicl.federation.client.Client` deals.

    Attributes:
        name: of the client.
        train: what it may train on.
        selection: held out.
    """

    name: str
    train: EncodedExamples
    selection: EncodedExamples


@dataclass(frozen=True)
class Setup:
    """The same for every method of a cell: model, prompts, split, settings.

    Attributes:
        backbone: the frozen model; a method leaves it as it was.
        model: how it was named.
        task: what is asked.
        examples: each client's, held-out ones included.
        test: read once, after everything is chosen.
        method: the paper's settings with the plan's seed, rounds, steps and batches.
        choices: what the first cell of the same model, set and method chose, for instance a learning rate; empty in that cell.
        on_progress: called with rounds done and rounds in all.
    """

    backbone: Backbone
    model: ModelSettings
    task: Task
    examples: Mapping[str, tuple[Example, ...]]
    test: tuple[Example, ...]
    method: Method
    choices: Mapping[str, float] = field(default_factory=dict)
    on_progress: Callable[[int, int], None] = nothing

    @property
    def names(self) -> tuple[str, ...]:
        """The clients."""
        return tuple(self.examples)

    @property
    def pool(self) -> tuple[Example, ...]:
        """All clients' examples."""
        return tuple(example for own in self.examples.values() for example in own)

    @cached_property
    def scorer(self) -> Scorer:
        """Model and task."""
        return Scorer(self.backbone, self.task)

    @cached_property
    def hands(self) -> tuple[Hand, ...]:
        """The clients' examples, encoded."""
        return tuple(Hand(name, *self._parts(own)) for name, own in self.examples.items())

    def clients(self) -> tuple[Client, ...]:
        """Clients that have computed nothing yet."""
        return runs.simulate(self.backbone, self.task, self.examples, seed=self.method.seed)

    def training_examples(self, examples: Sequence[Example]) -> tuple[Example, ...]:
        """Those that are not held out."""
        return self._roles(examples)[Role.TRAIN]

    def _parts(self, examples: Sequence[Example]) -> tuple[EncodedExamples, EncodedExamples]:
        roles = self._roles(examples)
        return self.scorer.encoded(roles[Role.TRAIN]), self.scorer.encoded(roles[Role.SELECTION])

    def _roles(self, examples: Sequence[Example]) -> dict[Role, tuple[Example, ...]]:
        holdout = self.method.holdout
        return split_roles(examples, selection=holdout.selection, gate=holdout.gate, seed=self.method.seed)
