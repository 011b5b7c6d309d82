"""Public text: it shows where the features of a readout lie, the same at every client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.readings import Reading
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.framed_sums import Frame
from ifedicl.core.readout import features, products_alone, projection
from ifedicl.core.subspace import Context
from ifedicl.core.units import Units
from ifedicl.core.vectors import Array64
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyExample

_Asked: TypeAlias = tuple[str, str, bytes, tuple[int, ...], int | None]
_MOST = 512
"""Texts that are used: enough for the directions in which features vary."""


class PublicText:
    """Texts of no client. What is read of them is computed once for all clients of a process that share this object."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts[:_MOST])
        self._read: tuple[_Asked, Reading] | None = None  # the last one: all clients ask for the same
        self._frame: tuple[_Asked, Frame] | None = None

    def examples(self, task: AnyTask) -> tuple[AnyExample, ...]:
        """The texts, with each answer in turn. The true ones are unknown and do not matter."""
        return tuple(task.example_for(text, place) for place, text in enumerate(self.texts))

    def frame(
        self, scorer: BaseScorer, context: Context, coefficients: Coefficients, pooled_layers: tuple[int, ...], seed: int
    ) -> Frame:
        """The frame of the readout's features in the model with these coefficients; ``seed`` is of their projection."""
        asked = _asked(scorer, context, coefficients, pooled_layers, seed)
        if self._frame is None or self._frame[0] != asked:
            reading = self._reading(scorer, context, coefficients, pooled_layers)
            self._frame = asked, Frame.of(framed_features(reading, scorer.backbone.width, seed))
        return self._frame[1]

    def units(self, scorer: BaseScorer, context: Context, coefficients: Coefficients, pooled_layers: tuple[int, ...]) -> Units:
        """The units of the readout's features in the model with these coefficients."""
        reading = self._reading(scorer, context, coefficients, pooled_layers)
        return Units.of(features(reading.states, reading.logs))

    def _reading(
        self, scorer: BaseScorer, context: Context, coefficients: Coefficients, pooled_layers: tuple[int, ...]
    ) -> Reading:
        asked = _asked(scorer, context, coefficients, pooled_layers)
        if self._read is None or self._read[0] != asked:
            examples = scorer.encoded(self.examples(scorer.task))
            with applied(scorer.backbone, context, coefficients):
                self._read = asked, scorer.reading(examples, pooled_layers)
        return self._read[1]


def _asked(
    scorer: BaseScorer, context: Context, coefficients: Coefficients, pooled_layers: tuple[int, ...], seed: int | None = None
) -> _Asked:
    """Names what is read."""
    numbers = b"".join(array.tobytes() for array in coefficients.arrays.values())
    return scorer.task.digest, context.digest, numbers, pooled_layers, seed


def framed_features(reading: Reading, width: int, seed: int) -> Array64:
    """``(N, F)``: the readout's features. No row changes a bit of another."""
    matrix = projection(reading.states.shape[1], width, seed)
    states = reading.states if matrix is None else products_alone(reading.states, matrix)
    return features(states, reading.logs)
