"""The readout: a linear classifier on what the adapted model knows of a text, in closed form.

It reads the last hidden state at the token that predicts the label, and the mean state of the text's tokens halfway up.

Past the paper, which reads the label words' logits alone. Clients send sums over their examples, from which ridge regression
follows exactly: the result is that of pooled text, whoever holds it. The label words' own log-probabilities are among the
features, so that what the rounds taught them is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag

from ifedicl import seeds
from ifedicl.core.vectors import Array32, Array64

MOST_FEATURES = 2048
"""Hidden states of more numbers than this are projected to this many random directions."""
PENALTIES = (0.3, 1.0, 3.0, 10.0)
"""Of all weights but the intercept, in units of each feature's scatter: as if all had been standardised."""
TEMPERATURES = (2.0, 4.0, 8.0)
"""Regression aims at 0 and 1; times one of these, its scores are logits."""


@dataclass(frozen=True)
class Readout:
    """Label scores as a linear function of hidden states and label log-probabilities.

    Attributes:
        weights: ``(C, h + C + 1)`` float32: of the hidden states, of the centred label log-probabilities, and of 1.
        pooled_layer: which layer the text's mean state is read at, behind the last hidden state (``h = 2d``); None: only the
            latter is (``h = d``).
    """

    weights: Array32
    pooled_layer: int | None = None

    def __post_init__(self) -> None:
        shape = self.weights.shape
        if self.weights.dtype != np.float32 or len(shape) != 2 or shape[1] <= shape[0] + 1:
            raise ValueError(f"readout {self.weights.dtype} {shape} is not float32 (C, h + C + 1)")

    def fits(self, classes: int, width: int, layers: int | None = None) -> bool:
        """Whether it reads so many labels off a model of this size; of so many layers, where that is known."""
        known = self.pooled_layer is None or 1 <= self.pooled_layer <= (layers or self.pooled_layer)
        return known and self.weights.shape == (classes, feature_count(hidden_count(width, self.pooled_layer), classes))

    def sharpened(self, temperature: float) -> Readout:
        """The same with all scores times ``temperature``: other probabilities, the same labels."""
        return replace(self, weights=(self.weights * np.float32(temperature)).astype(np.float32))

    def log_probabilities(self, states: npt.NDArray[np.floating], logs: npt.NDArray[np.floating]) -> Array32:
        """``(N, C)`` among the labels.

        Args:
            states: ``(N, h)``, the last hidden state at the token that predicts the label, and the text's mean state where
                there is a :attr:`pooled_layer`.
            logs: ``(N, C)``, the label words' log-probabilities.
        """
        scores = features(states, logs) @ self.weights.T.astype(np.float64)
        return log_softmax(scores).astype(np.float32)


@dataclass(frozen=True)
class ReadoutSums:
    """All that ridge regression needs to know of examples; sums of two sets of them add up.

    Attributes:
        gram: ``(F, F)`` float64, ``ΣφφT`` of their ``F = m + C + 1`` features, the last of which is 1.
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
    def from_wire(cls, arrays: Mapping[str, npt.NDArray[np.generic]], examples: int) -> Self:
        """From what travels.

        Raises:
            KeyError, ValueError: it is not that.
        """
        means, deviations, moment = (arrays[name].astype(np.float64) for name in ("means", "deviations", "moment"))
        words = arrays["words"].astype(np.float64)  # (C, F - 1)
        size, classes = moment.shape
        hidden = size - classes - 1
        correlations = arrays["correlations"]
        shapes = means.shape, deviations.shape, words.shape, correlations.shape
        if hidden < 1 or shapes != ((size - 1,), (hidden,), (classes, size - 1), (hidden * (hidden - 1) // 2,)):
            raise ValueError(f"sums of shapes {shapes} for a moment {moment.shape}")
        steps = correlations.astype(np.int64)
        if correlations.dtype != np.int8 or (steps < -_STEPS).any() or (deviations < 0).any():
            raise ValueError(f"correlations that are no steps of 1/{_STEPS}, or negative deviations")
        scatter = np.zeros((size - 1, size - 1))
        scatter[:hidden, :hidden][np.triu_indices(hidden, 1)] = steps / _STEPS
        scatter[:hidden, :hidden] += scatter[:hidden, :hidden].T + np.eye(hidden)
        scatter[:hidden, :hidden] *= np.outer(deviations, deviations)
        scatter[hidden:], scatter[:, hidden:] = words, words.T
        gram = np.empty((size, size))
        gram[:-1, :-1] = scatter + examples * np.outer(means, means)
        gram[-1, :-1] = gram[:-1, -1] = examples * means
        gram[-1, -1] = examples
        return cls(gram, moment, examples)

    @property
    def on_wire(self) -> dict[str, npt.NDArray[np.generic]]:
        """Means, deviations and correlations: the same sums in numbers of like size, so that one byte does for most of them.

        ``means`` ``(F - 1,)``, ``deviations`` ``(m,)``, ``words`` ``(C, F - 1)`` (scatter of the label log-probabilities) and
        ``moment`` ``(F, C)`` in float32; ``correlations`` ``(m (m - 1) / 2,)`` in int8 steps of 1/127: rounding moves each by
        0.002 at the root mean square, where the ``N`` examples behind it leave it uncertain by ``1/√N``.
        """
        size, classes = self.moment.shape
        hidden = size - classes - 1
        means = self.gram[-1, :-1] / max(self.examples, 1)
        scatter = self._scatter
        deviations = np.sqrt(np.maximum(np.diagonal(scatter)[:hidden], 0.0))
        scale = np.where(deviations > 0, deviations, 1.0)
        correlations = scatter[:hidden, :hidden] / np.outer(scale, scale)
        single = {"means": means, "deviations": deviations, "words": scatter[hidden:], "moment": self.moment}
        arrays: dict[str, npt.NDArray[np.generic]] = {name: array.astype(np.float32) for name, array in single.items()}
        # Sums that are not finite are told by their means and deviations; a byte cannot.
        steps = np.rint(_STEPS * np.clip(np.nan_to_num(correlations[np.triu_indices(hidden, 1)]), -1.0, 1.0))
        return arrays | {"correlations": steps.astype(np.int8)}

    @property
    def _scatter(self) -> Array64:
        """``(F - 1, F - 1)``: sums of products of what is left of the features without their means."""
        totals = self.gram[-1, :-1]
        scatter: Array64 = self.gram[:-1, :-1] - np.outer(totals, totals) / max(self.examples, 1)
        return scatter

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.gram).all() and np.isfinite(self.moment).all())

    def solve(self, projection: Array64 | None, pooled_layer: int | None = None) -> list[Readout]:
        """One readout for each of :data:`PENALTIES`, of temperature 1.

        Args:
            projection: as :func:`projection` gave the clients.
            pooled_layer: as the clients read the text's mean state.
        """
        size, classes = self.moment.shape
        hidden = size - classes - 1
        scatter = np.maximum(np.diagonal(self._scatter), 0.0)
        penalised = np.append(scatter + 1e-9 * scatter.sum(), 0.0)  # a feature that never changes has nothing to say
        whisker = 1e-6 * np.trace(self.gram) / size  # keeps the system regular
        readouts = []
        for penalty in PENALTIES:
            solution = np.linalg.solve(self.gram + np.diag(penalty * penalised + whisker), self.moment)  # (F, C)
            own = solution[:hidden] if projection is None else projection @ solution[:hidden]
            readouts.append(Readout(np.concatenate([own, solution[hidden:]]).T.astype(np.float32), pooled_layer))
        return readouts


_STEPS = 127  # of a correlation from 0 to 1 on the wire


def hidden_count(width: int, pooled_layer: int | None) -> int:
    """``h``: so many numbers of hidden states are read."""
    return width if pooled_layer is None else 2 * width


def feature_count(hidden: int, classes: int) -> int:
    """``F``: so many numbers of the hidden states, one log-probability a label, and 1."""
    return hidden + classes + 1


def features(states: npt.NDArray[np.floating], logs: npt.NDArray[np.floating]) -> Array64:
    """``(N, m + C + 1)``: hidden states, centred label log-probabilities, 1."""
    centred = logs - logs.mean(axis=1, keepdims=True)
    return np.concatenate([states, centred, np.ones((len(states), 1))], axis=1).astype(np.float64)


def projection(hidden: int, width: int, seed: int, most: int = MOST_FEATURES) -> Array64 | None:
    """``(h, m)`` random directions for states of more than ``most`` numbers, the same for all of a run; None for others.

    Each state of ``width`` numbers has directions of its own, so that a large one does not drown the other.
    """
    if hidden <= most:
        return None
    draw, parts = seeds.generator(seed, "projection"), hidden // width
    share = most // parts
    blocks = [draw.standard_normal((width, share)) / np.sqrt(share) for _ in range(parts)]
    directions: Array64 = block_diag(*blocks)
    return directions


def log_softmax(scores: Array64) -> Array64:
    """``(N, C)``: scores as logits to log-probabilities."""
    logs: Array64 = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return logs
