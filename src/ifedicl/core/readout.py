"""The readout: a linear classifier on hidden states of the adapted model, in closed form.

It reads the last hidden state at the token that predicts the label, and the mean state of the text's tokens at a middle layer.

This goes beyond the paper, which reads the logits of the label words alone. Clients send sums over their examples, from which
ridge regression follows exactly: the result equals that of pooled text. The log-probabilities of the label words are features
too, so that what the rounds taught them is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from ifedicl import seeds
from ifedicl.core.vectors import Array32, Array64, all_finite

if TYPE_CHECKING:
    import torch

MOST_FEATURES = 2048
"""Hidden states of more numbers than this are projected to this many random directions."""
PENALTIES = (0.3, 1.0, 3.0, 10.0)
"""Ridge penalties of all weights but the intercept, in units of each feature's scatter, as if features were standardised."""
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""The targets of the regression are 0 and 1; its scores times one of these are logits."""
_STEPS = 127  # of a correlation from 0 to 1 on the wire


@dataclass(frozen=True)
class Readout:
    """Label scores as a linear function of hidden states and label log-probabilities.

    Attributes:
        weights: ``(C, h + C + 1)`` float32: of the hidden states, of the centred label log-probabilities, and of 1.
        pooled_layer: the layer at which the text's mean state is read and put behind the last hidden state (``h = 2d``); None:
            the last hidden state alone is read (``h = d``).
    """

    weights: Array32
    pooled_layer: int | None = None

    def __post_init__(self) -> None:
        shape = self.weights.shape
        if self.weights.dtype != np.float32 or len(shape) != 2 or shape[1] <= shape[0] + 1:
            raise ValueError(f"readout: received {self.weights.dtype} {shape}; allowed: float32 (C, h + C + 1)")

    def fits(self, classes: int, width: int, layers: int | None = None) -> bool:
        """Whether the shape suits this many labels and a model of this width and, where given, this many layers."""
        known = self.pooled_layer is None or 1 <= self.pooled_layer <= (layers or self.pooled_layer)
        return known and self.weights.shape == (classes, feature_count(hidden_count(width, self.pooled_layer), classes))

    @property
    def reads_words(self) -> bool:
        """Whether any score depends on the label log-probabilities; if not, they need not be computed."""
        classes = len(self.weights)
        return bool(self.weights[:, -classes - 1 : -1].any())

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
            states: ``(N, h)``: last hidden states at the token that predicts the label; with a :attr:`pooled_layer` the text's
                mean states behind them.
            logs: ``(N, C)``: log-probabilities of the label words.
            alone: each row by itself (:func:`products_alone`).
        """
        rows, weights = features(states, logs), self.weights.T.astype(np.float64)
        return log_softmax(products_alone(rows, weights) if alone else rows @ weights).astype(np.float32)


@dataclass(frozen=True)
class ReadoutSums:
    """What ridge regression needs of examples; the sums of two sets of examples add up.

    Attributes:
        gram: ``(F, F)`` float64, ``Σφφᵀ`` of their ``F = m + C + 1`` features, the last of which is 1.
        moment: ``(F, C)`` float64, ``Σφy`` with the label one-hot.
        examples: number of examples.
    """

    gram: Array64
    moment: Array64
    examples: int

    @classmethod
    def of(cls, features: Array64, labels: npt.NDArray[np.integer], classes: int, device: torch.device | None = None) -> Self:
        """Sum over ``(N, F)`` features and ``(N,)`` label positions, on a device (None: the CPU)."""
        from ifedicl.core.transfer import to_device, to_host  # a FLARE server, which has no model, needs no torch

        rows, targets = (to_device(array, device) for array in (features, np.eye(classes)[labels]))
        gram, moment = to_host(rows.T @ rows, rows.T @ targets)
        return cls(gram, moment, len(labels))

    @classmethod
    def from_wire(cls, arrays: Mapping[str, npt.NDArray[np.generic]], examples: int) -> Self:
        """From :attr:`on_wire`.

        Raises:
            KeyError, ValueError: an array is missing or does not fit the others.
        """
        means, deviations, moment = (arrays[name].astype(np.float64) for name in ("means", "deviations", "moment"))
        words = arrays["words"].astype(np.float64)  # (C, F - 1)
        size, classes = moment.shape
        hidden = size - classes - 1
        correlations = arrays["correlations"]
        shapes = means.shape, deviations.shape, words.shape, correlations.shape
        if hidden < 1 or shapes != ((size - 1,), (hidden,), (classes, size - 1), (hidden * (hidden - 1) // 2,)):
            raise ValueError(f"moment: received {moment.shape}, which does not fit the shapes {shapes} of the other arrays")
        steps = correlations.astype(np.int64)
        if correlations.dtype != np.int8 or (steps < -_STEPS).any() or (deviations < 0).any():
            raise ValueError(f"correlations, deviations: allowed: int8 steps of 1/{_STEPS}, and deviations of at least 0")
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
        """The same sums as means, deviations and correlations: numbers of similar size, most of which fit into one byte.

        ``means`` ``(F - 1,)``, ``deviations`` ``(m,)``, ``words`` ``(C, F - 1)`` (scatter of the label log-probabilities) and
        ``moment`` ``(F, C)`` in float32; ``correlations`` ``(m (m - 1) / 2,)`` in int8 steps of 1/127. Rounding moves each by
        0.002 (root mean square); the ``N`` examples behind it leave it uncertain by ``1/√N``.
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
        # A byte cannot say that a sum is not finite; the means and deviations do.
        steps = np.rint(_STEPS * np.clip(np.nan_to_num(correlations[np.triu_indices(hidden, 1)]), -1.0, 1.0))
        return arrays | {"correlations": steps.astype(np.int8)}

    @property
    def _scatter(self) -> Array64:
        """``(F - 1, F - 1)``: sums of products of the centred features."""
        totals = self.gram[-1, :-1]
        return self.gram[:-1, :-1] - np.outer(totals, totals) / max(self.examples, 1)

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all_finite({"gram": self.gram, "moment": self.moment})

    def solve(self, projection: Array64 | None, pooled_layer: int | None = None) -> list[Readout]:
        """One readout of temperature 1 for each of :data:`PENALTIES`.

        Args:
            projection: the clients' :func:`projection`.
            pooled_layer: the layer at which the clients read the text's mean state.
        """
        size, classes = self.moment.shape
        hidden = size - classes - 1
        scatter = np.maximum(np.diagonal(self._scatter), 0.0)
        penalised = np.append(scatter + 1e-9 * scatter.sum(), 0.0)  # the second term: features that never change
        jitter = 1e-6 * np.trace(self.gram) / size  # keeps the system regular
        readouts = []
        for penalty in PENALTIES:
            solution = np.linalg.solve(self.gram + np.diag(penalty * penalised + jitter), self.moment)  # (F, C)
            of_states = solution[:hidden] if projection is None else projection @ solution[:hidden]
            readouts.append(Readout(np.concatenate([of_states, solution[hidden:]]).T.astype(np.float32), pooled_layer))
        return readouts


def hidden_count(width: int, pooled_layer: int | None) -> int:
    """``h``: how many numbers of hidden states the readout reads."""
    return width if pooled_layer is None else 2 * width


def feature_count(hidden: int, classes: int) -> int:
    """``F``: ``hidden`` numbers of hidden states, one log-probability for each label, and 1."""
    return hidden + classes + 1


def features(states: npt.NDArray[np.floating], logs: npt.NDArray[np.floating]) -> Array64:
    """``(N, m + C + 1)``: hidden states, centred label log-probabilities, 1."""
    centred = logs - logs.mean(axis=1, keepdims=True)
    return np.concatenate([states, centred, np.ones((len(states), 1))], axis=1).astype(np.float64)


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


def projected(states: Array32, directions: Array64, device: torch.device | None = None) -> Array64:
    """``(N, m)``: states in random :func:`projection` directions, computed on a device (None: the CPU)."""
    from ifedicl.core.transfer import to_device, to_host

    result: Array64 = to_host(to_device(states, device).double() @ to_device(directions, device))[0]
    return result


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
