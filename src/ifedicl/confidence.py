"""Whether probabilities mean what they say: calibration error, Brier score, and what is left if unsure answers are withheld."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

_BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence: how many, their mean confidence, and the fraction of them that is right."""

    examples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Answered:
    """The answers that are given at a least confidence.

    Attributes:
        least: the least confidence.
        examples: how many are given.
        coverage: the fraction of all examples.
        accuracy: the fraction of those given that is right; None if none is given.
    """

    least: float
    examples: int
    coverage: float
    accuracy: float | None


@dataclass(frozen=True)
class Confidence:
    """The confidence of answers, which is the probability of the label that is answered, beside what was right.

    Attributes:
        values: ``(N,)`` float64.
        hits: ``(N,)`` bool: whether the answer is right.
        brier: mean over examples of the squared distance between the probabilities and the truth as 0 and 1, from 0 to 2.
    """

    values: npt.NDArray[np.float64]
    hits: npt.NDArray[np.bool_]
    brier: float

    @classmethod
    def of(cls, logs: npt.NDArray[np.floating], truth: Sequence[int]) -> Self:
        """From ``(N, C)`` log-probabilities and ``(N,)`` label positions."""
        probabilities, rows, own = np.exp(logs.astype(np.float64)), np.arange(len(truth)), np.asarray(truth, dtype=np.int64)
        distances = np.square(probabilities).sum(axis=1) - 2 * probabilities[rows, own] + 1
        brier = float(distances.mean()) if len(rows) else float("nan")
        return cls(probabilities.max(axis=1, initial=0.0), logs.argmax(axis=1) == own, brier)

    @property
    def bins(self) -> list[Bin]:
        """Ten bins of equal width, without empty ones."""
        places = np.minimum((self.values * _BINS).astype(np.int64), _BINS - 1)
        members = [places == place for place in range(_BINS)]
        return [
            Bin(int(own.sum()), float(self.values[own].mean()), float(self.hits[own].mean())) for own in members if own.any()
        ]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017): the bins' mean distance of confidence and accuracy, by examples."""
        distances = [each.examples * abs(each.confidence - each.accuracy) for each in self.bins]
        return float(sum(distances)) / max(1, len(self.hits))

    def answered(self, least: float) -> Answered:
        """What is answered with a confidence of at least ``least``."""
        given = self.values >= least
        accuracy = float(self.hits[given].mean()) if given.any() else None
        return Answered(least, int(given.sum()), float(given.mean()) if len(given) else float("nan"), accuracy)

    def summary(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {"calibration_error": self.calibration_error, "brier": self.brier}
