"""The readout: a linear classifier on hidden states of the adapted model, in closed form.

It reads the last hidden state at the token that predicts the label, and mean states of the text's tokens at several layers.

This goes beyond the paper, which reads the logits of the label words alone. Clients send sums over their examples, from which
ridge regression follows exactly: the result equals that of pooled text. The log-probabilities of the label words are features
too, so that what the rounds taught them is not lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ifedicl import seeds
from ifedicl.core.vectors import Array32, Array64

MOST_FEATURES = 2048
"""Under noise, hidden states of more numbers than this are projected to this many random directions."""
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""The targets of the regression are 0 and 1; its scores times one of these are logits."""
_MOST_BITS = 10
"""A feature's largest weight is just below 2 to the power of it where weights travel: float16 ends at 2 to the power of 16."""


@dataclass(frozen=True)
class Readout:
    """Label scores as a linear function of hidden states and label log-probabilities.

    Attributes:
        weights: ``(C, h + C + 1)`` float32: of the hidden states, of the centred label log-probabilities, and of 1.
        pooled_layers: those at which the text's mean states are read and put behind the last hidden state, each once, from low
            to high (``h = (1 + layers) d``); empty: the last hidden state alone is read.
    """

    weights: Array32
    pooled_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shape = self.weights.shape
        if self.weights.dtype != np.float32 or len(shape) != 2 or shape[1] <= shape[0] + 1:
            raise ValueError(f"readout: received {self.weights.dtype} {shape}; allowed: float32 (C, h + C + 1)")

    def fits(self, classes: int, width: int, layers: int | None = None) -> bool:
        """Whether the shape suits this many labels and a model of this width and, where given, this many layers."""
        known = all(1 <= layer <= (layers or layer) for layer in self.pooled_layers)
        known = known and all(lower < upper for lower, upper in pairwise(self.pooled_layers))
        return known and self.weights.shape == (classes, feature_count(hidden_count(width, self.pooled_layers), classes) + 1)

    @property
    def reads_words(self) -> bool:
        """Whether any score depends on the label log-probabilities; if not, they need not be computed."""
        classes = len(self.weights)
        return bool(self.weights[:, -classes - 1 : -1].any())

    @property
    def coarse(self) -> Readout:
        """The same with weights rounded to what :func:`halves` hold."""
        return replace(self, weights=of_halves(*halves(self.weights)))

    def mixed(self, temperature: float, share: float) -> Readout:
        """The readout whose scores are ``temperature`` times these, plus ``share`` times the label log-probabilities."""
        weights, classes = self.weights * np.float32(temperature), len(self.weights)
        weights[:, -classes - 1 : -1] += np.float32(share) * np.eye(classes, dtype=np.float32)
        return replace(self, weights=weights)

    def log_probabilities(
        self, states: npt.NDArray[np.floating], logs: npt.NDArray[np.floating], *, alone: bool = False
    ) -> Array32:
        """``(N, C)`` log-probabilities among the labels.

        Args:
            states: ``(N, h)``: last hidden states at the token that predicts the label; the text's mean
                states at the :attr:`pooled_layers` behind them.
            logs: ``(N, C)``: log-probabilities of the label words.
            alone: each row by itself (:func:`products_alone`).
        """
        rows, weights = features(states, logs), self.weights.T.astype(np.float64)
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        return log_softmax(products_alone(rows, weights) if alone else rows @ weights).astype(np.float32)


def halves(weights: Array32) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int16]]:
    """Weights ``(..., C, K)`` as float16, each to a power of two that its feature's largest weight sets: ``(..., K)`` int16.

    Weights that come from :func:`of_halves` are the same again.
    """
    largest = np.abs(weights).max(axis=-2).astype(np.float64)
    _, exponents = np.frexp(np.nan_to_num(largest) * (1 + 2.0**-11))  # rounded up, it keeps its power
    powers = (exponents - _MOST_BITS).astype(np.int16)
    return np.ldexp(weights.astype(np.float64), -powers[..., None, :]).astype(np.float16), powers


def of_halves(numbers: npt.NDArray[np.float16], powers: npt.NDArray[np.int16]) -> Array32:
    """The weights ``(..., C, K)`` that these :func:`halves` hold."""
    weights: Array32 = np.ldexp(numbers.astype(np.float64), powers[..., None, :]).astype(np.float32)
    return weights


def hidden_count(width: int, pooled_layers: Sequence[int]) -> int:
    """``h``: how many numbers of hidden states the readout reads."""
    return width * (1 + len(pooled_layers))


def feature_count(hidden: int, classes: int) -> int:
    """``F``: ``hidden`` numbers of hidden states, and one log-probability for each label."""
    return hidden + classes


def features(states: npt.NDArray[np.floating], logs: npt.NDArray[np.floating]) -> Array64:
    """``(N, h + C)``: hidden states, centred label log-probabilities. The readout's intercept is not among them."""
    centred = logs - logs.mean(axis=1, keepdims=True)
    return np.concatenate([states, centred], axis=1).astype(np.float64)


def projection(hidden: int, width: int, seed: int, most: int = MOST_FEATURES) -> Array64 | None:
    """``(h, m)`` random directions for ``hidden > most`` numbers, the same for all clients of a run; None for fewer numbers.

    Each state of ``width`` numbers is projected separately, so that a large state does not drown a small one.
    """
    if hidden <= most:
        return None
    from scipy.linalg import block_diag  # few runs need it, and every process would pay for the import

    draw, states = seeds.generator(seed, "projection"), hidden // width
    share = most // states
    blocks = [draw.standard_normal((width, share)) / np.sqrt(share) for _ in range(states)]
    directions: Array64 = block_diag(*blocks)
    return directions


def products_alone(rows: npt.NDArray[np.floating], matrix: Array64) -> Array64:
    """``(N, K)``: ``rows @ matrix``, where the number and the values of other rows change no bit of a row's products.

    Differential privacy counts on it. A product of all rows at once depends on their number: libraries divide it into blocks.
    """
    row, products = np.empty(matrix.shape[0]), np.empty((len(rows), matrix.shape[1]))
    for place, values in enumerate(rows):
        row[:] = values  # the same memory each time, so the same code
        products[place] = row @ matrix
    return products


def log_softmax(scores: Array64) -> Array64:
    """``(N, C)`` log-probabilities from logits."""
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
