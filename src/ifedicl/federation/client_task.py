"""One owner's examples in one task: encoded once, with cached vectors and raw-model readings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.prompts import EncodedExamples, Tokens
from ifedicl.backbone.readings import Reading
from ifedicl.calibrate import gradient_sum
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout, features
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.refinement import Products, Refinement
from ifedicl.core.subspace import Context
from ifedicl.core.units import Units
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Role, split_roles
from ifedicl.errors import ConfigError, DataError, Fault, TaskError
from ifedicl.extract import context_vectors
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import NoisyStatisticsReply, Request, StatisticsReply
from ifedicl.federation.public_text import PublicText
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyExample
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import Method

_log = logging.getLogger(__name__)

ReadoutReply: TypeAlias = StatisticsReply | NoisyStatisticsReply
"""The sums that a readout is made of."""


class ExampleSums:
    """Sums of an owner's examples as they are: no noise, no DP guarantee."""

    def __init__(self, reference: PublicText) -> None:
        """Take the texts in which features get their units, the same at every client."""
        self._reference = reference

    @property
    def spent_epsilon(self) -> float | None:
        """The ε of all sums so far, for one example; None: there is no DP guarantee."""
        return None

    @property
    def reads_alone(self) -> bool:
        """Whether each example is read in a pass of its own, so that it cannot change what another one gives."""
        return False

    def answers(self, request: Request) -> bool:
        """Whether a reply to this request may leave at all."""
        del request
        return True

    def noise(self, kind: str, size: int) -> npt.NDArray[np.int64]:
        """``(size,)``: the noise for the last reply to a request of this kind, in steps of the fixed point: none."""
        del kind
        return np.zeros(size, dtype=np.int64)

    def vectors(self, scorer: BaseScorer, prompts: Sequence[Tokens], labels: Sequence[Any], method: Method) -> ContextVectors:
        """As :func:`ifedicl.extract.context_vectors`."""
        return context_vectors(scorer, prompts, labels, method)

    def gradient(
        self,
        scorer: BaseScorer,
        examples: EncodedExamples,
        context: Context,
        coefficients: Coefficients,
        method: Method,
        rows: Sequence[int],
    ) -> GradientSum:
        """As :func:`ifedicl.calibrate.gradient_sum`."""
        return gradient_sum(scorer, examples, context, coefficients, method, rows)

    def tallies(self, task: AnyTask, scores: Sequence[npt.NDArray[np.floating]], labels: Sequence[Any]) -> tuple[Tally, ...]:
        """One tally for each candidate, from its scores."""
        return tuple(task.tally(each, labels) for each in scores)

    def comparison(
        self, task: AnyTask, adapter: npt.NDArray[np.floating], zero_shot: npt.NDArray[np.floating], labels: Sequence[Any]
    ) -> Comparison:
        """As :meth:`ifedicl.kinds.any_task.AnyTask.comparison`."""
        return task.comparison(adapter, zero_shot, labels)

    def statistics(
        self,
        scorer: BaseScorer,
        reading: Reading,
        labels: Sequence[Any],
        manifest: Manifest,
        context: Context,
        coefficients: Coefficients,
    ) -> ReadoutReply:
        """The readout sums of a reading of training examples in the model with these coefficients, as a reply."""
        units, classes = self.units(scorer, manifest, context, coefficients), scorer.task.columns
        rows, device = features(reading.states, reading.logs), scorer.backbone.device
        return StatisticsReply(
            ReadoutSums.of(rows, np.array(scorer.row_classes(labels)), classes, units, manifest.directions, device)
        )

    def units(self, scorer: BaseScorer, manifest: Manifest, context: Context, coefficients: Coefficients) -> Units:
        """The units of the readout's features in the model with these coefficients, the same at every client."""
        layers = manifest.method.pooled_layers(scorer.backbone.layers)
        return self._reference.units(scorer, context, coefficients, layers)


def exact_sums(manifest: Manifest, reference: PublicText) -> ExampleSums:
    """Sums without a DP guarantee.

    Raises:
        ConfigError: the job promises one.
    """
    if manifest.method.promises_noise:
        remedy = "Give public text, the same at every client: public in [data]."
        raise ConfigError("private mode", [Fault("data.public", "nothing", "a file of texts that are no client's own", remedy)])
    return ExampleSums(reference)


class ClientTask:
    """One owner's examples under one task and method. Each is encoded once; nothing is computed twice."""

    def __init__(
        self, manifest: Manifest, scorer: BaseScorer, examples: Sequence[AnyExample], sums: ExampleSums, split_seed: int
    ) -> None:
        """Divide the examples into roles by ``split_seed``; nothing is encoded yet."""
        self._manifest = manifest
        self.sums = sums
        self.split_seed = split_seed
        self.task = manifest.task
        method = self.method = manifest.method
        self.scorer = scorer
        if sums.reads_alone:
            examples = _readable(scorer, examples)
        self.roles = split_roles(examples, selection=method.holdout.selection, gate=method.holdout.gate, seed=split_seed)
        self._parts: dict[Role, EncodedExamples] = {}
        self._keys: dict[Role, tuple[str, ...]] = {}
        self._summed: tuple[int, ContextVectors] | None = None
        self._zero_shot: dict[Role, Reading] = {}
        self._last: dict[Role, tuple[tuple[str, bytes], Reading]] = {}

    def part(self, role: Role) -> EncodedExamples:
        """The encoded examples of one role.

        Raises:
            DataError: a text has no tokens.
        """
        if role not in self._parts:
            part = self._parts[role] = self.scorer.encoded(self.roles[role])
            if cut := part.prompts.truncated:
                _log.warning("%d of %d %s texts were cut to fit the model's window", cut, len(part.labels), role.value)
        return self._parts[role]

    def vectors(self, known: int) -> ContextVectors:
        """The vectors of all training examples after the first ``known``; cached for a coordinator that lost them."""
        if self._summed is None or self._summed[0] != known:
            part = self.part(Role.TRAIN)
            rows = part.prompts.tokens[known:], part.labels[known:]
            # What is sent is float32 at most, and many clients may share this memory.
            vectors = self.sums.vectors(self.scorer, *rows, self.method)
            self._summed = known, vectors.in_float32
        return self._summed[1]

    def tallies(self, context: Context, coefficients: Coefficients, readouts: Sequence[Readout | None]) -> tuple[Tally, ...]:
        """An adapter's tally on the selection examples, for each readout."""
        reading, labels = self._reading(Role.SELECTION, context, coefficients), self.part(Role.SELECTION).labels
        alone = self.sums.reads_alone
        return self.sums.tallies(self.task, [reading.log_probabilities(readout, alone=alone) for readout in readouts], labels)

    def comparison(self, context: Context, coefficients: Coefficients, readout: Readout | None) -> Comparison:
        """Compares the adapter with the raw model on the gate examples."""
        identity = Coefficients.identity(coefficients.form)
        adapted, raw = (self._reading(Role.GATE, context, values) for values in (coefficients, identity))
        ours = adapted.log_probabilities(readout, alone=self.sums.reads_alone)
        return self.sums.comparison(self.task, ours, raw.logs, self.part(Role.GATE).labels)

    def statistics(self, context: Context, coefficients: Coefficients) -> ReadoutReply:
        """The readout sums of the training examples, in the adapted model."""
        reading, labels = self._features(context, coefficients), self.part(Role.TRAIN).labels
        return self.sums.statistics(self.scorer, reading, labels, self._manifest, context, coefficients)

    def products(self, context: Context, coefficients: Coefficients, asked: Refinement) -> Products:
        """The products that a refinement asks for, of the training examples; no pass if the statistics were just asked for."""
        reading = self._features(context, coefficients)
        units = self.sums.units(self.scorer, self._manifest, context, coefficients)
        return Products.of(features(reading.states, reading.logs), units, asked, self.scorer.backbone.device)

    def _features(self, context: Context, coefficients: Coefficients) -> Reading:
        """What a readout's features of the training examples are made of."""
        return self._reading(Role.TRAIN, context, coefficients, words=self.method.reads_words(self.task.columns))

    def _reading(self, role: Role, context: Context, coefficients: Coefficients, *, words: bool = True) -> Reading:
        """Readings of one role's examples, with label words or without; those of the raw model are kept, and the last ones."""
        if role in self._zero_shot and coefficients.is_identity:
            return self._zero_shot[role]
        asked = context.digest, b"".join(array.tobytes() for array in coefficients.arrays.values())
        if role in self._last and self._last[role][0] == asked:
            return self._last[role][1]
        layers = self.method.pooled_layers(self.scorer.backbone.layers)
        with applied(self.scorer.backbone, context, coefficients):
            reading = self.scorer.reading(self.part(role), layers, alone=self.sums.reads_alone, words=words)
        if coefficients.is_identity:
            self._zero_shot[role] = reading
        else:
            self._last[role] = asked, reading
        return reading

    def counts(self, role: Role, first: int) -> npt.NDArray[np.int64]:
        """``(C,)``: the first ``first`` examples of a role by class."""
        return np.bincount(self.scorer.classes_of(self.part(role).labels[:first]), minlength=self.task.classes)

    def keys(self, role: Role) -> tuple[str, ...]:
        """A key of each example of a role, in order."""
        if role not in self._keys:
            self._keys[role] = tuple(row.key for row in self.roles[role])
        return self._keys[role]


def _readable(scorer: BaseScorer, examples: Sequence[AnyExample]) -> tuple[AnyExample, ...]:
    """The examples that the task can use. One that it cannot use must not change the reply about all others into a code."""
    readable = []
    for example in examples:
        try:
            scorer.encoded([example])
        except (DataError, TaskError):
            continue
        readable.append(example)
    if left_out := len(examples) - len(readable):
        _log.warning("%d examples are left out: their label is not of the task, or the model cannot read their text", left_out)
    return tuple(readable)
