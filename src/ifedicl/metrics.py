"""Figures of a classifier, and tests whether two classifiers differ by more than chance. No torch.

Functions import scipy where they need it: it takes about a second, and servers and sites seldom do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ifedicl.confidence import Confidence

_ONE_SIDED = 0.95
_NO_CHANCE = 0.99  # of random answers: meaningless labels open one gate in a hundred
_RESAMPLES = 9_999
_BATCH_NUMBERS = 4_000_000  # resampled numbers held at once: 32 MB


@dataclass(frozen=True)
class Tally:
    """Counts and sums over examples: what a client sends about its held-out text.

    Attributes:
        examples: number of examples.
        correct: how many were labelled correctly.
        loss_sum: sum of ``-log P(label | prompt)`` among the labels, in nats.
    """

    examples: int = 0
    correct: int = 0
    loss_sum: float = 0.0

    @classmethod
    def of(cls, logs: npt.NDArray[np.floating], truth: Sequence[int]) -> Self:
        """Count ``(N, C)`` log-probabilities against ``(N,)`` label positions."""
        own = logs[np.arange(len(truth)), list(truth)].astype(np.float64)
        return cls(len(truth), int((logs.argmax(axis=1) == np.asarray(truth)).sum()), float(-own.sum()))

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.examples + other.examples, self.correct + other.correct, self.loss_sum + other.loss_sum)

    @property
    def accuracy(self) -> float:
        """Fraction correct; NaN without examples."""
        return self.correct / self.examples if self.examples else float("nan")

    @property
    def loss(self) -> float:
        """Mean loss in nats; NaN without examples."""
        return self.loss_sum / self.examples if self.examples else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Sums that compare an adapter with the raw model on the same held-out examples; the gate decides by them.

    Attributes:
        adapter: the adapter's figures.
        zero_shot: the raw model's figures.
        squared_gains: sum of squares of each example's loss by the raw model minus its loss by the adapter.
        disagreements: on how many examples exactly one of them is right.
        truth: ``(C,)`` number of examples of each label; empty without examples.
        answers: ``(C,)`` how often the adapter answers each label.
    """

    adapter: Tally = Tally()
    zero_shot: Tally = Tally()
    squared_gains: float = 0.0
    disagreements: int = 0
    truth: tuple[int, ...] = ()
    answers: tuple[int, ...] = ()

    @classmethod
    def of(cls, adapter: npt.NDArray[np.floating], zero_shot: npt.NDArray[np.floating], truth: Sequence[int]) -> Self:
        """Compare ``(N, C)`` log-probabilities against ``(N,)`` label positions."""
        rows, own = np.arange(len(truth)), list(truth)
        gains = adapter[rows, own].astype(np.float64) - zero_shot[rows, own]
        right = [logs.argmax(axis=1) == np.asarray(truth) for logs in (adapter, zero_shot)]
        disagreements = int((right[0] != right[1]).sum())
        tallies = Tally.of(adapter, truth), Tally.of(zero_shot, truth)
        counts = (np.bincount(labels, minlength=adapter.shape[1]) for labels in (own, adapter.argmax(axis=1)))
        return cls(*tallies, float((gains**2).sum()), disagreements, *(tuple(map(int, each)) for each in counts))

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            self.adapter + other.adapter,
            self.zero_shot + other.zero_shot,
            self.squared_gains + other.squared_gains,
            self.disagreements + other.disagreements,
            _added(self.truth, other.truth),
            _added(self.answers, other.answers),
        )

    @property
    def is_open(self) -> bool:
        """Whether the adapter may be used: it is better than the raw model, and its answers depend on the labels.

        The second condition catches meaningless labels: with these a model that has learnt to be unsure has a lower loss than
        a confident one, on held-out examples too.
        """
        return self.is_better and self.beats_chance

    @property
    def sentence(self) -> str:
        """The figures of both, in words."""
        ours, raw = (f"loss {tally.loss:.3f}, {100 * tally.accuracy:.1f}% right" for tally in (self.adapter, self.zero_shot))
        return f"on {self.adapter.examples} held-out examples that nothing else has seen, {ours} against {raw}"

    @property
    def beats_chance(self) -> bool:
        """Whether more answers are right than for a random permutation of the answers, one-sided at 1%.

        That is Cohen's kappa above 0, by its permutation distribution: with ``n_c`` examples of each label and ``m_c`` answers,
        ``Σ n_c m_c / n`` are right on average. Constant answers are right as often as chance. Mean and variance are exact, the
        tail is normal: for eight examples, all right, p is 0.4% instead of 1.4%.

        With one class, as for answers of text, chance gives no right answer: there must be one.
        """
        from scipy.special import ndtri

        count = self.adapter.examples
        if count < 2:
            return False
        if len(self.truth) == 1:
            return self.adapter.correct > 0
        truth, answers = np.array(self.truth, dtype=np.float64), np.array(self.answers, dtype=np.float64)
        both = float(truth @ answers)
        variance = (both**2 - count * float((truth * answers) @ (truth + answers)) + count**2 * both) / (count**2 * (count - 1))
        threshold = float(ndtri(_NO_CHANCE)) * math.sqrt(max(0.0, variance))
        return self.adapter.correct - both / count > threshold

    @property
    def is_better(self) -> bool:
        """Whether the adapter is better than the raw model on these examples.

        Its loss must be lower by a paired one-sided 95% bound (or equal on every example), and its accuracy not lower by more
        than one standard error of the paired difference: a lower loss alone can come from a model that is less confident.
        """
        count = self.adapter.examples
        if count < 2:
            return False
        gain = (self.zero_shot.loss_sum - self.adapter.loss_sum) / count
        right = (self.adapter.correct - self.zero_shot.correct) / count
        return bool(
            _lower_bound(gain, self.squared_gains, count) >= 0
            and right + _standard_error(right, float(self.disagreements), count) >= 0
        )


@dataclass(frozen=True)
class CountedComparison(Comparison):
    """A comparison whose counts have noise, and which has no losses: the better guess decides."""

    @property
    def is_open(self) -> bool:
        """Whether more answers of the adapter were counted as right than of the raw model."""
        return self.is_better

    @property
    def is_better(self) -> bool:
        """Whether more answers of the adapter were counted as right than of the raw model."""
        return self.adapter.correct > self.zero_shot.correct

    @property
    def sentence(self) -> str:
        """The figures of both, in words."""
        ours, raw = (f"about {100 * tally.accuracy:.1f}% right" for tally in (self.adapter, self.zero_shot))
        return f"on about {self.adapter.examples} held-out examples that nothing else has seen, {ours} against {raw}"


def _added(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    return tuple(mine + theirs for mine, theirs in zip_longest(first, second, fillvalue=0))


def _lower_bound(mean: float, squares: float, count: int) -> float:
    """One-sided 95% bound of the mean of ``count`` numbers whose squares sum to ``squares``, by Student's t."""
    from scipy.special import stdtrit

    return mean - float(stdtrit(count - 1, _ONE_SIDED)) * _standard_error(mean, squares, count)


def _standard_error(mean: float, squares: float, count: int) -> float:
    """Standard error of the mean of ``count`` numbers whose squares sum to ``squares``."""
    return math.sqrt(max(0.0, squares - count * mean**2) / (count * (count - 1)))


@dataclass(frozen=True)
class Evaluation:
    """Predictions against the truth.

    Attributes:
        labels: names, in the task's order.
        truth: ``(N,)`` label positions.
        predicted: ``(N,)`` label positions.
        loss: mean ``-log P(label | prompt)`` among the labels, in nats.
        confidence: how sure the predictions are, beside how often they are right.
    """

    labels: tuple[str, ...]
    truth: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    loss: float
    confidence: Confidence

    @classmethod
    def of(cls, labels: Sequence[str], logs: npt.NDArray[np.floating], truth: Sequence[int]) -> Self:
        """From ``(N, C)`` log-probabilities and ``(N,)`` label positions."""
        places, predicted = np.array(truth, dtype=np.int64), logs.argmax(axis=1).astype(np.int64)
        return cls(tuple(labels), places, predicted, Tally.of(logs, truth).loss, Confidence.of(logs, truth))

    @property
    def examples(self) -> int:
        """``N``."""
        return len(self.truth)

    @property
    def figures(self) -> dict[str, float]:
        """Macro-F1."""
        return {"macro-F1": self.macro_f1}

    @property
    def numbers(self) -> dict[str, float]:
        """None."""
        return {}

    @property
    def by_label(self) -> list[tuple[int, int]]:
        """``(C, 2)``: of each label, the examples that have it, and how many of these are answered right."""
        matrix = self.confusion
        return [(int(row.sum()), int(row[place])) for place, row in enumerate(matrix)]

    @property
    def hits(self) -> npt.NDArray[np.float64]:
        """``(N,)``: 1 where the prediction is right, else 0."""
        hits: npt.NDArray[np.float64] = (self.truth == self.predicted).astype(np.float64)
        return hits

    @property
    def accuracy(self) -> float:
        """Fraction correct."""
        return float(self.hits.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson(int(self.hits.sum()), len(self.truth))

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """``(C, C)`` counts: row the true label, column the predicted one."""
        matrix = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        np.add.at(matrix, (self.truth, self.predicted), 1)
        return matrix

    @property
    def macro_f1(self) -> float:
        """Mean over labels of F1; a label that is neither true nor predicted anywhere is left out."""
        matrix = self.confusion
        right = np.diag(matrix).astype(np.float64)
        total = matrix.sum(axis=0) + matrix.sum(axis=1)
        return float(np.mean(2 * right[total > 0] / total[total > 0]))

    def summary(self) -> dict[str, Any]:
        """All figures as JSON."""
        return {
            "examples": len(self.truth),
            "accuracy": self.accuracy,
            "interval": self.interval,
            "macro_f1": self.macro_f1,
            "loss": self.loss,
            **self.confidence.summary(),
            "labels": self.labels,
            "confusion": self.confusion.tolist(),
        }


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion."""
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired_p(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Two-sided p-value that two methods score alike on the same examples, by random sign flips of the differences.

    Args:
        first: ``(N,)`` scores of one method, for instance 1 for a hit and 0 for a miss.
        second: ``(N,)`` scores of the other on the same examples.
    """
    from scipy import stats

    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if len(difference) < 2 or not difference.any():
        return 1.0
    result = stats.permutation_test(
        (difference,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // len(difference)),
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


class HasHits(Protocol):
    """Figures with one number for each example."""

    @property
    def hits(self) -> npt.NDArray[np.float64]:
        """``(N,)``: 1 where the answer is right, else 0."""
        ...


def mean_hits(evaluations: Sequence[HasHits]) -> npt.NDArray[np.float64]:
    """``(N,)``: on each example, the fraction of the evaluations that got it right."""
    mean: npt.NDArray[np.float64] = np.mean([evaluation.hits for evaluation in evaluations], axis=0, dtype=np.float64)
    return mean
