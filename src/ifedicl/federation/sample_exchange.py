"""One sample request and reply of each step of a run: real shapes, invented numbers. Nothing is sent.

``ifedicl inspect`` counts their bytes. ``ifedicl policy check`` applies a policy to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.framed_sums import Frame, FramedSums
from ifedicl.core.readout import Readout, feature_count, hidden_count
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.refinement import Products, Refinement
from ifedicl.core.subspace import Context
from ifedicl.core.units import Units
from ifedicl.core.vectors import WRITES, ContextVectors
from ifedicl.federation import messages
from ifedicl.federation.manifest import CONTEXT_ID_SIZE, Manifest
from ifedicl.federation.messages import Reply
from ifedicl.metrics import Comparison, Tally

Exchange: TypeAlias = tuple[messages.StepRequest, Reply]

_CONTEXT_ID, _CURSOR, _ROUND = "0" * CONTEXT_ID_SIZE, f"100:{'0' * 32}", 10
_WEIGHT_BITS = 16
_LOSS = 0.123456789


@dataclass(frozen=True)
class SampleCounts:
    """The number of examples behind each reply; ``groups`` is ``(G,)``, training examples by group."""

    groups: npt.NDArray[np.int64]
    selection: int
    gate: int

    @property
    def train(self) -> int:
        """Training examples of all groups."""
        return int(self.groups.sum())


def sample_exchange(manifest: Manifest, counts: SampleCounts) -> dict[str, Exchange]:
    """The request and reply of each step that the method needs, in the order of a run."""
    holdout, coefficients, injects = manifest.method.holdout, manifest.identity, not manifest.method.is_one_shot
    steps: dict[str, Exchange] = {"job": (messages.JobRequest(manifest), messages.JobReply())}
    if injects:
        steps |= _vectors(manifest, counts) | _round(manifest, counts)
    if manifest.method.measures_first and holdout.selection > 0:
        request = messages.EvaluateRequest(_CONTEXT_ID, coefficients)
        steps["evaluate"] = request, messages.EvaluateReply((_tally(counts.selection),))
    if manifest.method.readout is not None:
        steps |= _readout(manifest, counts)
    if holdout.gate > 0:
        answers, tally = manifest.task.answers, _tally(counts.gate)
        by_label = tuple(counts.gate // answers + (label < counts.gate % answers) for label in range(answers))
        compared = Comparison(tally, tally, _LOSS, counts.gate, by_label, by_label)
        steps["compare"] = messages.CompareRequest(_CONTEXT_ID, coefficients, None), messages.CompareReply(compared)
    return steps


def sample_context(manifest: Manifest) -> Context:
    """Global vectors and basis in the shapes of a job with rounds, all zero."""
    layers, rank = manifest.layers, manifest.method.rank
    shape = len(layers), len(WRITES), manifest.model.width
    basis = np.zeros((*shape[:2], rank, shape[2]), dtype=np.float32) if rank else None
    return Context(np.zeros(shape, dtype=np.float32), basis, layers.start)


def _vectors(manifest: Manifest, counts: SampleCounts) -> dict[str, Exchange]:
    method, model, layers = manifest.method, manifest.model, manifest.layers
    shape = len(layers), len(WRITES), model.width
    vectors = ContextVectors(np.zeros((len(counts.groups), *shape), dtype=np.float32), counts.groups)
    context = sample_context(manifest)
    request = messages.VectorsRequest(manifest.digest, "")
    return {
        "vectors": (request, messages.VectorsReply(vectors, _CURSOR, True, "float32", method.vectors.wire_dtype)),
        "context": (messages.ContextRequest(manifest.digest, context, method.vectors.wire_dtype), messages.ContextReply()),
    }


def _round(manifest: Manifest, counts: SampleCounts) -> dict[str, Exchange]:
    """One round without its evaluation."""
    coefficients, server = manifest.identity, manifest.method.server
    if server is not None and manifest.method.takes_gradients:
        sums = GradientSum(coefficients.arrays, round(server.draw * counts.train), _LOSS)
        return {"gradient": (messages.GradientRequest(_CONTEXT_ID, _ROUND, coefficients), messages.GradientReply(sums))}
    weight_bits = _WEIGHT_BITS if manifest.method.sums_only else 0
    request = messages.UpdateRequest(_CONTEXT_ID, _ROUND, 0, _ROUND, coefficients, weight_bits)
    return {"update": (request, messages.UpdateReply(coefficients, counts.train, _LOSS))}


def _readout(manifest: Manifest, counts: SampleCounts) -> dict[str, Exchange]:
    """The two steps of a readout: its sums, and the evaluation of its candidates."""
    method, model, coefficients = manifest.method, manifest.model, manifest.identity
    assert method.readout is not None
    classes, layers = manifest.task.columns, method.pooled_layers(model.layers)
    hidden, size = hidden_count(model.width, layers), manifest.features
    zeros = np.zeros((classes, feature_count(hidden, classes) + 1), dtype=np.float32)
    if method.promises_noise:
        frame = Frame(np.zeros(size), np.ones(size), np.zeros((Frame.direction_count(size), size)))
        products = Frame.row_size(size) - size - 1
        noisy = messages.NoisyStatisticsReply(FramedSums(np.zeros((size + 1, classes)), np.zeros(products), frame))
        steps: dict[str, Exchange] = {"noisy_statistics": (messages.NoisyStatisticsRequest(_CONTEXT_ID, coefficients), noisy)}
        if method.holdout.selection > 0:
            trial = messages.EvaluateRequest(_CONTEXT_ID, coefficients, (Readout(zeros, layers),), *manifest.mixes)
            steps["readouts"] = trial, messages.EvaluateReply((_tally(counts.selection),) * len(trial.candidates))
        return steps
    directions = manifest.directions.shape
    by_label = np.full((2, classes) if manifest.task.overlaps else classes, counts.train / classes)
    rows = np.ones((size, classes)), np.full(size, float(counts.train)), np.zeros(directions), np.zeros(directions[1])
    sums = ReadoutSums(by_label, *rows, Units.none(size))
    readouts = (Readout(zeros, layers),) * manifest.readouts
    weight_bits = _WEIGHT_BITS if method.sums_only else 0
    request = messages.StatisticsRequest(_CONTEXT_ID, coefficients, weight_bits)
    trial = messages.EvaluateRequest(_CONTEXT_ID, coefficients, readouts, *manifest.mixes)
    refinement = Refinement(np.zeros(size, np.float16), np.eye(size, manifest.columns, dtype=np.float16))
    asked = messages.ProductsRequest(_CONTEXT_ID, coefficients, refinement, weight_bits)
    answer = messages.ProductsReply(Products(counts.train, np.zeros(refinement.directions.shape)))
    return {
        "statistics": (request, messages.StatisticsReply(sums)),
        **({"products": (asked, answer)} if method.refinements else {}),
        "readouts": (trial, messages.EvaluateReply((_tally(counts.selection),) * len(trial.candidates))),
    }


def _tally(examples: int) -> Tally:
    return Tally(examples, examples // 2, _LOSS * examples)
