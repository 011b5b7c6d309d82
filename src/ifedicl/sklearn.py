"""An adapter as a scikit-learn classifier of texts, for pipelines, cross-validation and searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.data import Example
from ifedicl.errors import DataError
from ifedicl.personal import personalise


class AdapterClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Labels texts with a federation's adapter; ``X`` is a sequence of strings.

    The adapter is already calibrated. With ``steps=0`` ``fit`` learns nothing: it loads the model and checks the labels. With
    more steps ``fit`` calibrates the adapter further on ``X`` and ``y`` (:func:`ifedicl.personalise`), and uses the result if
    it is better on a held-out part of them.

    Attributes:
        classes_: ``(C,)`` labels, sorted.
        adapter_: the adapter that predicts.
    """

    def __init__(
        self,
        adapter: str | Path | Adapter = "adapter",
        *,
        model: str | None = None,
        backbone: Backbone | None = None,
        steps: int = 0,
        held_out: float = 0.3,
        seed: int = 0,
    ) -> None:
        """Load nothing yet.

        Args:
            adapter: the adapter or its folder.
            model: the model's source on this machine, if it differs from the adapter's.
            backbone: the loaded model; clones share it. None: each ``fit`` loads it.
            steps: calibration steps in ``fit``.
            held_out: the fraction of ``X`` that decides whether the result of these steps is used.
            seed: of the split and of the batches.
        """
        self.adapter = adapter
        self.model = model
        self.backbone = backbone
        self.steps = steps
        self.held_out = held_out
        self.seed = seed

    def fit(self, X: Sequence[str], y: Sequence[str]) -> Self:  # noqa: N803
        """Load the model; with ``steps``, calibrate the adapter further.

        Raises:
            DataError: the task does not have a label, or ``X`` does not hold texts only.
            BackboneError: the model cannot be loaded, or is another model.
        """
        adapter = self.adapter if isinstance(self.adapter, Adapter) else Adapter.load(self.adapter)
        loaded = adapter.with_model_source(self.model)
        texts, labels = _texts(X), [str(label) for label in y]
        for label in sorted(set(labels)):
            loaded.task.index(label)
        classifier = loaded.classifier(self.backbone)
        if self.steps:
            examples = [Example(text, label) for text, label in zip(texts, labels, strict=True)]
            personal = personalise(
                loaded, examples, classifier.backbone, steps=self.steps, held_out=self.held_out, seed=self.seed
            )
            classifier = personal.adapter.classifier(classifier.backbone)
        self.adapter_ = classifier.adapter
        self.classes_ = np.array(sorted(loaded.task.labels))
        self._classifier = classifier
        self._order = np.argsort(loaded.task.labels)
        return self

    def predict_proba(self, X: Sequence[str]) -> npt.NDArray[np.float64]:  # noqa: N803
        """``(N, C)`` probabilities, in the order of ``classes_``."""
        check_is_fitted(self)
        texts = _texts(X)
        if not texts:
            return np.zeros((0, len(self.classes_)))
        probabilities: npt.NDArray[np.float64] = np.exp(self._classifier.log_probabilities(texts).astype(np.float64))
        ordered: npt.NDArray[np.float64] = (probabilities / probabilities.sum(axis=1, keepdims=True))[:, self._order]
        return ordered

    def predict(self, X: Sequence[str]) -> npt.NDArray[np.str_]:  # noqa: N803
        """``(N,)`` labels."""
        positions = self.predict_proba(X).argmax(axis=1)
        labels: npt.NDArray[np.str_] = self.classes_[positions]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False, True
        tags.no_validation = True
        return tags


def _texts(X: Sequence[str]) -> list[str]:  # noqa: N803
    texts = list(X)
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(f"X: received a {type(text).__name__} as number {number}; allowed: a sequence of strings")
    return texts
