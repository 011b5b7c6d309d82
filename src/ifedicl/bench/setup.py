"""The input of a method in one cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ifedicl import runs
from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import EncodedExamples
from ifedicl.backbone.scorers import scorer_of
from ifedicl.data import Role, split_roles
from ifedicl.federation.client import Client
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyExample
from ifedicl.settings import Method, ModelSettings


def ignore_progress(done: int, total: int) -> None:
    """Progress callback that does nothing."""


@dataclass(frozen=True)
class EncodedClient:
    """One client's encoded examples, with the same roles as in :class:`~ifedicl.federation.client.Client`."""

    name: str
    train: EncodedExamples
    selection: EncodedExamples


@dataclass(frozen=True)
class Setup:
    """The same input for every method of a cell: model, prompts, split, settings.

    Attributes:
        backbone: the frozen model; a method must not change it.
        examples: by client, held-out examples included.
        test: a method reads these rows once, after every choice.
        method: the preset with the plan's seed, rounds, steps and batches.
        choices: what the first cell of the same model, set and method chose, for instance a learning rate; empty in that cell.
        on_progress: called with completed rounds and all rounds.
    """

    backbone: Backbone
    model: ModelSettings
    task: AnyTask
    examples: Mapping[str, tuple[AnyExample, ...]]
    test: tuple[AnyExample, ...]
    method: Method
    choices: Mapping[str, float] = field(default_factory=dict)
    on_progress: Callable[[int, int], None] = ignore_progress

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the clients."""
        return tuple(self.examples)

    @property
    def pool(self) -> tuple[AnyExample, ...]:
        """Examples of all clients, held-out examples included."""
        return tuple(example for examples in self.examples.values() for example in examples)

    @cached_property
    def scorer(self) -> BaseScorer:
        """Scores examples of the task with the model."""
        return scorer_of(self.backbone, self.task)

    @cached_property
    def encoded_clients(self) -> tuple[EncodedClient, ...]:
        """Encoded training and held-out examples of every client."""
        encoded = self.scorer.encoded
        roles = {name: self._roles(examples) for name, examples in self.examples.items()}
        return tuple(
            EncodedClient(name, encoded(role[Role.TRAIN]), encoded(role[Role.SELECTION])) for name, role in roles.items()
        )

    def clients(self) -> tuple[Client, ...]:
        """New clients of a simulated federation; nothing is computed yet."""
        return runs.simulate(self.backbone, self.task, self.examples, seed=self.method.seed)

    def training_examples(self, examples: Sequence[AnyExample]) -> tuple[AnyExample, ...]:
        """The examples that are not held out."""
        return self._roles(examples)[Role.TRAIN]

    def _roles(self, examples: Sequence[AnyExample]) -> dict[Role, tuple[AnyExample, ...]]:
        holdout = self.method.holdout
        return split_roles(examples, selection=holdout.selection, gate=holdout.gate, seed=self.method.seed)
