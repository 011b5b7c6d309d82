"""Figures of labels that are steps of a scale, as ratings are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ifedicl.metrics import Evaluation


@dataclass(frozen=True)
class OrderedEvaluation(Evaluation):
    """Predictions of labels that are steps of a scale, from low to high."""

    @property
    def numbers(self) -> dict[str, float]:
        """How far off predictions are."""
        return {"mean absolute error": self.mean_absolute_error, "quadratic kappa": self.quadratic_kappa}

    @property
    def mean_absolute_error(self) -> float:
        """Mean distance of the predicted label from the true one, in steps of the scale."""
        return float(np.abs(self.truth - self.predicted).mean())

    @property
    def quadratic_kappa(self) -> float:
        """Cohen's kappa with squared distances as weights; 1 is perfect, 0 is chance. NaN if all are of one label."""
        matrix, steps = self.confusion.astype(np.float64), np.arange(len(self.labels))
        distances = np.square(np.subtract.outer(steps, steps))
        by_chance = np.outer(matrix.sum(axis=1), matrix.sum(axis=0)) / matrix.sum()
        expected = float((distances * by_chance).sum())
        return 1 - float((distances * matrix).sum()) / expected if expected else float("nan")

    def summary(self) -> dict[str, Any]:
        """All figures as JSON."""
        kappa = self.quadratic_kappa
        scale = {"mean_absolute_error": self.mean_absolute_error, "quadratic_kappa": None if math.isnan(kappa) else kappa}
        return super().summary() | scale
