"""Texts with any number of labels: how a file's rows have them, and figures of the sets that are answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ifedicl.confidence import Confidence
from ifedicl.errors import DataError, InputError
from ifedicl.inputs import described
from ifedicl.kinds.examples import HitsEvaluation, check_strings
from ifedicl.kinds.row_cells import check_filled, check_text
from ifedicl.metrics import Tally

_RESAMPLES = 1_000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class MultiLabelExample:
    """A text with any number of labels, also none.

    Raises:
        InputError: text or a label is not a string, or holds an unpaired surrogate; or the labels are no frozen set.
    """

    text: str
    labels: frozenset[str]

    def __post_init__(self) -> None:
        if not isinstance(self.labels, frozenset):
            raise InputError(f"labels of an example: received {described(self.labels)}; allowed: a frozenset of strings")
        check_strings("an example", [("text", self.text), *(("a label", label) for label in self.labels)])

    @property
    def key(self) -> str:
        """Hex SHA-256 of text and labels: it names the example without its content. It stays with the owner."""
        return hashlib.sha256("\x1f".join((*sorted(self.labels), self.text)).encode()).hexdigest()

    @property
    def drawn(self) -> str | None:
        """One of its labels, drawn by the example's hash; None: it has none."""
        names = sorted(self.labels)
        return names[int(self.key, 16) % len(names)] if names else None

    @property
    def stratum(self) -> str:
        """The label that is drawn."""
        return self.drawn or ""


@dataclass(frozen=True)
class LabelSet:
    """The positions of an example's labels, in order, and the class that it counts for in stage 1."""

    places: tuple[int, ...]
    group: int


def has_label(labels: Sequence[LabelSet], count: int) -> npt.NDArray[np.bool_]:
    """``(N, C)``: which of ``count`` labels each example has."""
    matrix = np.zeros((len(labels), count), dtype=np.bool_)
    for row, own in enumerate(labels):
        matrix[row, list(own.places)] = True
    return matrix


def margins(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """``(N, C)`` log-odds of each label, from ``(N, 1 + C)`` scores of the threshold and the labels."""
    difference: npt.NDArray[np.float64] = (scores[:, 1:] - scores[:, :1]).astype(np.float64)
    return difference


def set_losses(odds: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """``(N,)``: ``-log P(labels)`` in nats, the sum of each label's binary cross-entropy."""
    losses: npt.NDArray[np.float64] = np.logaddexp(0.0, np.where(truth, -odds, odds)).sum(axis=1)
    return losses


def set_tally(scores: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> Tally:
    """Counts of ``(N, 1 + C)`` scores; an answer is right if every label is."""
    odds = margins(scores)
    return Tally(len(truth), int(((odds > 0) == truth).all(axis=1).sum()), float(set_losses(odds, truth).sum()))


@dataclass(frozen=True)
class MultiLabelEvaluation(HitsEvaluation):
    """Sets of labels against the truth.

    Attributes:
        labels: names, in the task's order.
        truth: ``(N, C)``: which labels each example has.
        predicted: ``(N, C)``: which the answer has.
        loss: mean ``-log P(labels)`` in nats, summed over labels.
        confidence: the probability of each answered set, beside whether it is right; of the Brier score the mean over labels.
    """

    labels: tuple[str, ...]
    truth: npt.NDArray[np.bool_]
    predicted: npt.NDArray[np.bool_]
    loss: float
    confidence: Confidence

    @classmethod
    def of(cls, labels: Sequence[str], scores: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> Self:
        """From ``(N, 1 + C)`` scores and ``(N, C)`` labels."""
        odds = margins(scores)
        predicted = odds > 0
        probabilities = np.exp(-np.logaddexp(0.0, -odds))
        brier = float(np.square(probabilities - truth).mean()) if len(truth) else float("nan")
        hits = (predicted == truth).all(axis=1)
        confidence = Confidence(np.exp(-set_losses(odds, predicted)), hits, brier)
        return cls(tuple(labels), truth, predicted, set_tally(scores, truth).loss, confidence)

    @property
    def hits(self) -> npt.NDArray[np.float64]:
        """``(N,)``: 1 where the whole set is right, else 0."""
        hits: npt.NDArray[np.float64] = (self.truth == self.predicted).all(axis=1).astype(np.float64)
        return hits

    @property
    def micro_f1(self) -> float:
        """F1 of all yes and no together; 0 where nothing is said and nothing is true."""
        return float(_f1(self._counts.sum(axis=(1, 2))))

    @property
    def micro_f1_interval(self) -> tuple[float, float]:
        """95% bootstrap interval of :attr:`micro_f1` over examples."""
        counts, draw = self._counts.sum(axis=2).T, np.random.default_rng(0)  # (N, 3)
        resampled = [_f1(counts[draw.integers(len(counts), size=len(counts))].sum(axis=0)) for _ in range(_RESAMPLES)]
        low, high = np.quantile(resampled, _TAILS)
        return float(low), float(high)

    @property
    def macro_f1(self) -> float:
        """Mean over labels of F1; a label that is neither true nor answered anywhere is left out."""
        by_label = self._counts.sum(axis=1)  # (3, C)
        return float(np.mean(_f1(by_label[:, by_label.sum(axis=0) > 0]))) if by_label.any() else 0.0

    @property
    def hamming_loss(self) -> float:
        """Fraction of all yes and no that is wrong."""
        return float((self.truth != self.predicted).mean())

    @property
    def figures(self) -> dict[str, float]:
        """Both F1 scores, and the fraction of wrong decisions."""
        return {"micro-F1": self.micro_f1, "macro-F1": self.macro_f1, "Hamming loss": self.hamming_loss}

    @property
    def by_label(self) -> list[tuple[int, int]]:
        """``(C, 2)``: of each label, the examples that have it, and how many of these are given it."""
        both = (self.truth & self.predicted).sum(axis=0)
        return [(int(own), int(right)) for own, right in zip(self.truth.sum(axis=0), both, strict=True)]

    def summary(self) -> dict[str, Any]:
        """All figures as JSON."""
        return {
            "examples": self.examples,
            "accuracy": self.accuracy,
            "interval": self.interval,
            "micro_f1": self.micro_f1,
            "micro_f1_interval": self.micro_f1_interval,
            "macro_f1": self.macro_f1,
            "hamming_loss": self.hamming_loss,
            "loss": self.loss,
            **self.confidence.summary(),
            "labels": self.labels,
            "by_label": self.by_label,
        }

    @property
    def _counts(self) -> npt.NDArray[np.int64]:
        """``(3, N, C)``: right yes, wrong yes, missed."""
        both = self.truth & self.predicted
        return np.stack([both, self.predicted & ~self.truth, self.truth & ~self.predicted]).astype(np.int64)


def _f1(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """F1 of ``(3, ...)`` counts of right yes, wrong yes and missed; 0 where all are 0."""
    right, wrong, missed = counts.astype(np.float64)
    f1: npt.NDArray[np.float64] = 2 * right / np.maximum(2 * right + wrong + missed, 1.0)
    return f1


def labels_in(row: Mapping[str, Any], column: str) -> frozenset[str]:
    """The labels of a row: those of a list, as such or as JSON, or the text of the cell, which may name several.

    Raises:
        DataError: the column is missing or empty, or holds something else.
    """
    check_filled(row, column)
    cell = row[column]
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            raise DataError(f'column {column!r}: received text that is no JSON list; write it as ["one", "two"]') from None
    for name in cell if isinstance(cell, list) else [cell]:
        check_text(name, column)
    if not isinstance(cell, list):
        return frozenset({str(cell)} if str(cell).strip() else ())
    return frozenset(map(str, cell))
