"""The readout: a linear classifier on what the adapted model knows at the token that predicts the label, in closed form.

Past the paper, which reads the label words' logits alone. Clients send sums over their examples, from which ridge regression
follows exactly: the result is that of pooled text, whoever holds it. The label words' own log-probabilities are among the
features and are not penalised, so a strong penalty leaves an affine map of the label logits, and a weak one a probe of the
hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ifedicl import seeds
from ifedicl.core.vectors import Array32, Array64

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
"""Of the hidden state's weights, in units of its mean square."""
TEMPERATURES = (2.0, 4.0, 8.0)
"""Regression aims at 0 and 1; times one of these, its scores are logits."""


@dataclass(frozen=True)
class Readout:
    """Label scores as a linear function of hidden state and label log-probabilities.

    Attributes:
        weights: ``(C, d + C + 1)`` float32: of the last hidden state, of the centred label log-probabilities, and of 1.
    """

    weights: Array32

    def __post_init__(self) -> None:
        shape = self.weights.shape
        if self.weights.dtype != np.float32 or len(shape) != 2 or shape[1] <= shape[0] + 1:
            raise ValueError(f"readout {self.weights.dtype} {shape} is not float32 (C, d + C + 1)")

    def fits(self, classes: int, width: int) -> bool:
        """Whether it reads so many labels off a model of this width."""
        return self.weights.shape == (classes, feature_count(width, classes))

    def sharpened(self, temperature: float) -> Readout:
        """The same with all scores times ``temperature``: other probabilities, the same labels."""
        return Readout((self.weights * np.float32(temperature)).astype(np.float32))

    def log_probabilities(self, states: npt.NDArray[np.floating], logs: npt.NDArray[np.floating]) -> Array32:
        """``(N, C)`` among the labels.

        Args:
            states: ``(N, d)``, the last hidden state at the token that predicts the label.
            logs: ``(N, C)``, the label words' log-probabilities.
        """
        scores = features(states, logs) @ self.weights.T.astype(np.float64)
        return log_softmax(scores).astype(np.float32)


@dataclass(frozen=True)
class ReadoutSums:
    """All that ridge regression needs to know of examples; sums of two sets of them add up.

    Attributes:
        gram: ``(F, F)`` float64, ``ΣφφT`` of their ``F = m + C + 1`` features.
        moment: ``(F, C)`` float64, ``Σφy`` with the label one-hot.
        examples: how many.
    """

    gram: Array64
    moment: Array64
    examples: int

    @classmethod
    def of(cls, features: Array64, labels: npt.NDArray[np.integer], classes: int) -> Self:
        """Sum over ``(N, F)`` features and ``(N,)`` label positions."""
        targets = np.eye(classes)[labels]
        return cls(features.T @ features, features.T @ targets, len(labels))

    @classmethod
    def from_triangle(cls, triangle: npt.NDArray[np.floating], moment: npt.NDArray[np.floating], examples: int) -> Self:
        """From what travels: :attr:`triangle`, moment, and the number of examples."""
        size = len(moment)
        if moment.ndim != 2 or triangle.shape != (size * (size + 1) // 2,):
            raise ValueError(f"a triangle {triangle.shape} for a moment {moment.shape}")
        gram = np.zeros((size, size))
        gram[np.triu_indices(size)] = triangle
        gram += np.triu(gram, 1).T
        return cls(gram, moment.astype(np.float64), examples)

    @property
    def triangle(self) -> Array64:
        """``(F (F + 1) / 2,)``: the upper half of the symmetric ``gram``."""
        upper: Array64 = self.gram[np.triu_indices(len(self.gram))]
        return upper

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.gram).all() and np.isfinite(self.moment).all())

    def combine(self, other: ReadoutSums) -> ReadoutSums:
        """The sums over both sets of examples."""
        return ReadoutSums(self.gram + other.gram, self.moment + other.moment, self.examples + other.examples)

    def solve(self, projection: Array64 | None) -> list[Readout]:
        """One readout for each of :data:`PENALTIES`, of temperature 1.

        Args:
            projection: as :func:`projection` gave the clients.
        """
        size, classes = self.moment.shape
        hidden = size - classes - 1
        unit = np.trace(self.gram[:hidden, :hidden]) / hidden
        penalised = np.zeros(size)
        penalised[:hidden] = unit
        # A whisker on all keeps the system regular: centred log-probabilities sum to zero.
        whisker = 1e-6 * np.trace(self.gram) / size
        readouts = []
        for penalty in PENALTIES:
            solution = np.linalg.solve(self.gram + np.diag(penalty * penalised + whisker), self.moment)  # (F, C)
            own = solution[:hidden] if projection is None else projection @ solution[:hidden]
            readouts.append(Readout(np.concatenate([own, solution[hidden:]]).T.astype(np.float32)))
        return readouts


def feature_count(hidden: int, classes: int) -> int:
    """``F``: so many numbers of the hidden state, one log-probability a label, and 1."""
    return hidden + classes + 1


def features(states: npt.NDArray[np.floating], logs: npt.NDArray[np.floating]) -> Array64:
    """``(N, m + C + 1)``: hidden states, centred label log-probabilities, 1."""
    centred = logs - logs.mean(axis=1, keepdims=True)
    return np.concatenate([states, centred, np.ones((len(states), 1))], axis=1).astype(np.float64)


def projection(width: int, most: int, seed: int) -> Array64 | None:
    """``(d, m)`` random directions for states wider than ``most``, the same for all of a run; None where they are not."""
    if width <= most:
        return None
    draw = seeds.generator(seed, "projection")
    drawn: Array64 = draw.standard_normal((width, most)) / np.sqrt(most)
    return drawn


def log_softmax(scores: Array64) -> Array64:
    """``(N, C)``: scores as logits to log-probabilities."""
    logs: Array64 = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return logs
