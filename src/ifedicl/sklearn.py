"""An adapter as a scikit-learn classifier of texts, for pipelines, cross-validation and searches."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.validation import check_is_fitted

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.caller_labels import read_labels
from ifedicl.errors import InputError
from ifedicl.inputs import fraction, probability, texts_of, whole_number
from ifedicl.kinds.classify import Example, as_classification
from ifedicl.personal import personalise


class AdapterClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Labels texts with a federation's adapter; ``X`` is a sequence or one column of strings.

    The adapter is already calibrated. With ``steps=0`` ``fit`` learns nothing: it loads the model and checks the labels. With
    more steps ``fit`` calibrates the adapter further on ``X`` and ``y`` (:func:`ifedicl.personalise`), and uses the result if
    it is better on a held-out part of them.

    Attributes:
        classes_: ``(C,)`` all labels of the task, sorted, of the dtype of ``y``.
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

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Load the model; with ``steps``, calibrate the adapter further.

        Args:
            X: ``(N,)`` texts: a list, an array, a series, or a data frame of one column.
            y: ``(N,)`` labels: the task's names, or numbers or booleans (:func:`ifedicl.caller_labels.read_labels`).

        Raises:
            InputError: ``X`` does not hold texts only, ``y`` has another length or a label that the task does not have, or a
                parameter is out of its range.
            BackboneError: the model cannot be loaded, or is another model.
        """
        steps = whole_number(self.steps, "steps", least=0, remedy="0 learns nothing; 40 are usual")
        if not isinstance(self.model, str | None):
            raise InputError(f"model: received {self.model!r}; allowed: a path or hub id as text, or None. Give text")
        if not isinstance(self.backbone, Backbone | None):
            raise InputError(f"backbone: received {type(self.backbone).__name__}; allowed: what load_backbone returns, or None")
        fraction(self.held_out, "held_out", remedy="0.3 is usual")
        whole_number(self.seed, "seed", least=0, remedy="0 is usual")
        if getattr(y, "shape", ())[1:] == (1,):
            warnings.warn("A column-vector y was passed when a 1d array was expected", DataConversionWarning, stacklevel=2)
        texts, loaded = _some_texts(X), _adapter_of(self.adapter).with_model_source(self.model)
        task = as_classification(loaded.task, "AdapterClassifier")
        labels = read_labels(y, task)
        if len(labels.names) != len(texts):
            raise InputError(
                f"X and y: received {len(texts)} texts and {len(labels.names)} labels; allowed: one label for each text. "
                "Check that both come from the same rows"
            )
        used, classifier = loaded, loaded.classifier(self.backbone)
        if steps:
            examples = [Example(text, label) for text, label in zip(texts, labels.names, strict=True)]
            personal = personalise(loaded, examples, classifier.backbone, steps=steps, held_out=self.held_out, seed=self.seed)
            used = personal.adapter
            classifier = used.classifier(classifier.backbone)
        self.adapter_ = used
        self.classes_ = labels.classes
        self._classifier = classifier
        self._order = np.array([task.index(name) for name in labels.sorted_names])
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:  # noqa: N803
        """``(N, C)`` probabilities, in the order of ``classes_``."""
        check_is_fitted(self)
        texts = texts_of(X, "X")
        if not texts:
            return np.zeros((0, len(self.classes_)))
        if not hasattr(self, "_classifier"):  # after a pickle
            self._classifier = self.adapter_.classifier(self.backbone)
        probabilities: npt.NDArray[np.float64] = np.exp(self._classifier.log_probabilities(texts).astype(np.float64))
        ordered: npt.NDArray[np.float64] = (probabilities / probabilities.sum(axis=1, keepdims=True))[:, self._order]
        return ordered

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """``(N,)`` labels, of the dtype of the ``y`` that was fitted."""
        positions = self.predict_proba(X).argmax(axis=1)
        labels: npt.NDArray[Any] = self.classes_[positions]
        return labels

    def answers(self, X: Any, min_confidence: float) -> npt.NDArray[np.object_]:  # noqa: N803
        """``(N,)`` objects: the label that :meth:`predict` gives, or None where its probability is below ``min_confidence``.

        ``predict`` itself withholds nothing: scores, searches and ensembles need a label for each text.

        Raises:
            InputError: ``X`` does not hold texts only, or ``min_confidence`` is not a number from 0 to 1.
        """
        least = probability(min_confidence, "min_confidence", remedy="0 withholds nothing")
        probabilities = self.predict_proba(X)
        labels: npt.NDArray[np.object_] = self.classes_.astype(object)[probabilities.argmax(axis=1)]
        labels[probabilities.max(axis=1, initial=0.0) < least] = None
        return labels

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process puts the adapter on the model itself.
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_classifier"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False, True
        tags.no_validation = True
        return tags


def _adapter_of(given: object) -> Adapter:
    if isinstance(given, Adapter):
        return given
    if not isinstance(given, str | Path):
        raise InputError(
            f"adapter: received {given!r}; allowed: an Adapter, or its folder. Give the folder that `ifedicl run` wrote"
        )
    return Adapter.load(given)


def _some_texts(X: object) -> list[str]:  # noqa: N803
    texts = texts_of(X, "X")
    if not texts:
        raise InputError(
            "X: received no texts, 0 sample(s); allowed: a minimum of 1 is required. Check the rows that you chose"
        )
    return texts
