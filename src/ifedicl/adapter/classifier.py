"""An adapter of a classification on its model: texts in, labels out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ifedicl.adapter.content import Content
from ifedicl.adapter.on_model import OnModel
from ifedicl.core.vectors import Array32
from ifedicl.inputs import texts_of
from ifedicl.kinds.classify import as_classification
from ifedicl.kinds.examples import AnyExample
from ifedicl.metrics import Evaluation

if TYPE_CHECKING:
    from ifedicl.backbone.load import Backbone

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """The most probable label of a text, and the probabilities of all labels in the task's order; they sum to 1."""

    label: str
    probabilities: Mapping[str, float]

    @property
    def confidence(self) -> float:
        """The probability of the label."""
        return self.probabilities[self.label]

    def answer(self, least: float) -> str | None:
        """The label; None if its probability is below ``least``."""
        return self.label if self.confidence >= least else None


class Classifier(OnModel):
    """An adapter of a classification on its model, ready for any number of texts."""

    def __init__(self, adapter: Content, backbone: Backbone) -> None:
        """Check that the adapter is of a classification and was made with this model.

        Raises:
            TaskError: its task is of another kind.
            FingerprintError, AdapterError: as :class:`OnModel`.
        """
        from ifedicl.backbone.scoring import Scorer

        as_classification(adapter.task, "Adapter.classifier")
        super().__init__(adapter, backbone)
        assert isinstance(self.scorer, Scorer)
        self._words = self.scorer

    def log_probabilities(self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None) -> Array32:
        """``(N, C)`` log-probabilities among the labels, in the order of ``texts``.

        Raises:
            InputError: ``texts`` is a single string, or holds something else than strings.
            DataError: a text has no tokens.
        """
        from ifedicl.backbone.hooks import applied

        texts = texts_of(texts, "texts")
        prompts = self._words.encoder.prompts(texts)
        if prompts.truncated:
            _log.warning("%d of %d texts were cut to fit the model's window", prompts.truncated, len(texts))
        with applied(self.backbone, self.adapter.context, self.adapter.coefficients):
            return self._words.log_probabilities(prompts, readout=self.adapter.readout, on_progress=on_progress)

    def classify(self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None) -> list[Prediction]:
        """Label texts.

        Raises:
            DataError: a text has no tokens.
        """
        labels = self._words.task.labels
        return [
            Prediction(labels[int(row.argmax())], dict(zip(labels, map(float, np.exp(row)), strict=True)))
            for row in self.log_probabilities(texts, on_progress=on_progress)
        ]

    def evaluate(self, examples: Sequence[AnyExample], *, on_progress: Callable[[int], None] | None = None) -> Evaluation:
        """Label examples and compare with their labels.

        Raises:
            InputError: ``examples`` holds something else than examples.
            DataError: a text has no tokens.
        """
        evaluation = super().evaluate(examples, on_progress=on_progress)
        assert isinstance(evaluation, Evaluation)
        return evaluation
