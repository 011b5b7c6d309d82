"""A job's manifest: everything that decides what a client computes, in one file that an owner can read and approve.

Requests name a job by its digest and bring numbers only. All else a client takes from the manifest that it holds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core import sketch
from ifedicl.core.blend import shares
from ifedicl.core.coefficients import Coefficients, Form, cold_start
from ifedicl.core.penalties import readout_count
from ifedicl.core.readout import MOST_FEATURES, TEMPERATURES, feature_count, hidden_count
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import WRITES
from ifedicl.kinds import TaskField
from ifedicl.kinds.any_task import AnyTask
from ifedicl.settings import Method, Section, validated

FORMAT = 1
CONTEXT_ID_SIZE = 48
"""Hexadecimal digits of the name of global vectors."""
_SLACK = 2


class Limits(Section):
    """The most replies of each kind that a job asks of one client.

    In open mode the same request again counts once: its reply is the same. In a secure sum it counts again, because another sum
    over other clients could be subtracted.
    """

    rounds: int = Field(ge=0, description="the number of rounds")
    updates: int = Field(ge=0, description="updates or gradient sums, with those that an interrupted run repeats")
    figures: int = Field(ge=0, description="held-out figures and comparisons at the gate")
    sums: int = Field(ge=0, description="context vectors and readout sums")
    contexts: int = Field(ge=0, description="global vectors that a client takes")

    @classmethod
    def of(cls, method: Method, rounds: int, phases: int) -> Self:
        """What ``phases`` schedules of ``rounds`` rounds in all need, twice: an interrupted run repeats some steps."""
        evaluations = math.ceil(rounds / method.rounds.evaluate_every)
        once = method.readout is not None
        injects = not method.is_one_shot
        measured = injects + method.measures_first  # last round, zero-shot
        in_a_phase = measured * (method.holdout.selection > 0) + once + (method.holdout.gate > 0)
        figures = evaluations * (method.holdout.selection > 0) + phases * in_a_phase
        return cls(
            rounds=rounds,
            updates=_SLACK * rounds if method.sums_only else rounds,  # in open mode the repeated request is the same
            figures=_SLACK * figures,
            sums=_SLACK * phases * (injects + once + method.refinements),
            contexts=_SLACK * phases * injects,
        )


class _ModelSection(Section):
    """The model's identity and size."""

    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits")
    layers: int = Field(ge=1, description="1 or more")
    width: int = Field(ge=1, description="1 or more")


class _Content(Section):
    """A manifest as JSON."""

    format: Literal[1] = Field(description="1; another version of ifedicl wrote another number")
    task: TaskField
    method: Method
    model: _ModelSection
    limits: Limits


@dataclass(frozen=True)
class Manifest:
    """One job: a task, by one method, on one model, with limits. Change it with a new object: its digest is kept."""

    task: AnyTask
    method: Method
    model: ModelShape
    limits: Limits

    @classmethod
    def of(cls, task: AnyTask, method: Method, model: ModelShape, *, rounds: int = 0, phases: int = 1) -> Self:
        """The manifest of a run.

        Args:
            task: the question.
            method: the settings.
            model: the model that all clients must use.
            rounds: of all schedules together; fewer than ``method.rounds.rounds`` count as these.
            phases: the number of schedules: 1, and 1 more for each ``--more-rounds``.
        """
        return cls(task, method, model, Limits.of(method, max(rounds, method.rounds.rounds), phases))

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str = "manifest") -> Self:
        """From :meth:`to_json`, in an owner's file.

        Raises:
            ConfigError: a field is missing, unknown or not allowed; the message names every fault.
        """
        return cls._of_content(validated(_Content, values, source))

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """From :meth:`to_json`, in a message. The faults are not looked into: there may be any number of them.

        Raises:
            ValueError: a field is missing, unknown or not allowed.
        """
        try:
            return cls._of_content(_Content.model_validate(values))
        except ValidationError as error:
            raise ValueError(f"manifest: {error.error_count()} faults") from None

    @classmethod
    def _of_content(cls, content: _Content) -> Self:
        return cls(content.task, content.method, ModelShape(**content.model.model_dump()), content.limits)

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "format": FORMAT,
            "task": self.task.model_dump(mode="json"),
            "method": self.method.model_dump(mode="json"),
            "model": asdict(self.model),
            "limits": self.limits.model_dump(mode="json"),
        }

    @cached_property
    def digest(self) -> str:
        """Names the job: hex SHA-256 of all of the manifest. Each side computes it itself."""
        return _digest(self.to_json())

    @cached_property
    def run(self) -> str:
        """Names the run: hex SHA-256 of task, method and model. Checkpoints belong to it, and owners count what left by it.

        A job with other limits is the same run, so another limit never resets a count.
        """
        return _digest([self.task.digest, self.method.model_dump(mode="json"), self.model.fingerprint])

    @property
    def question(self) -> str:
        """The model's fingerprint: replies to jobs on one model are compared, whatever their tasks.

        Two tasks can differ in a label that nobody has; their replies could be subtracted from each other.
        """
        return self.model.fingerprint

    @property
    def layers(self) -> range:
        """The injected layers."""
        return self.method.injected_layers(self.model.layers)

    @property
    def features(self) -> int:
        """The number of features of the readout's sums."""
        classes, model = self.task.columns, self.model
        hidden = hidden_count(model.width, self.method.pooled_layers(model.layers))
        return feature_count(min(hidden, MOST_FEATURES) if self.method.promises_noise else hidden, classes)

    @cached_property
    def directions(self) -> sketch.Directions:
        """The directions of the sketch in a readout's sums without noise: each side draws them itself."""
        states = hidden_count(self.model.width, self.method.pooled_layers(self.model.layers)) // self.model.width
        return sketch.Directions.of([self.model.width] * states, self.task.columns, self._counts[0], self.method.seed)

    @property
    def mixes(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The temperatures at which readouts are tried, and the shares of the label words that are added to each."""
        if self.method.promises_noise:
            return (1.0,), (0.0,)
        return TEMPERATURES, shares(self.method.reads_words(self.task.columns))

    @property
    def readouts(self) -> int:
        """How many readouts are tried at most."""
        depths = len(self.method.pooled_layers(self.model.layers))
        return 1 if self.method.promises_noise else readout_count(depths)

    @property
    def columns(self) -> int:
        """The most directions of a refinement of these sums; 0: there are none."""
        return self._counts[1]

    @property
    def _counts(self) -> tuple[int, int]:
        budget, method = sketch.SUMMED if self.method.sums_only else sketch.OWN, self.method
        task, one_shot = self.task, method.is_one_shot
        return budget.counts(self.features, task.columns, method.refinements, is_one_shot=one_shot, overlaps=task.overlaps)

    @property
    def form(self) -> Form:
        """The shape of the coefficients."""
        return Form(len(self.layers), self.method.rank)

    @property
    def no_context(self) -> Context:
        """The global vectors of a job without rounds: none, of no layer. Each side knows them."""
        return Context(np.zeros((0, len(WRITES), self.model.width), dtype=np.float32))

    @property
    def identity(self) -> Coefficients:
        """Coefficients of the raw model."""
        return Coefficients.identity(self.form)

    @property
    def initial(self) -> Coefficients:
        """Coefficients of a cold start (paper: λ = 0.1, β = 1)."""
        return cold_start(self.form, self.method.injection)


def context_id(job: str, context: Context) -> str:
    """Names global vectors by job and numbers. A client computes it itself, so all who use a name use the same numbers."""
    content = f"{job}{context.digest}{context.first_layer}".encode()
    return hashlib.sha256(content).hexdigest()[:CONTEXT_ID_SIZE]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
