"""The readout under differential privacy: sums of bounded features in a public frame, and a linear discriminant from them.

The frame comes from public text. It centres and scales the features, so that one clip suits all of them, and names the
directions in which they vary most. Each example adds its features to the sum of its class, and products of its coordinates in
these directions. From the noisy sums follow the class means, and the covariance within classes: all of it in the named
directions, where it is large; one variance for all other directions, where the noise would exceed it. Class means are shrunk
towards their mean by what noise alone would give (James and Stein 1961).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.readout import Readout, products_alone
from ifedicl.core.units import Units
from ifedicl.core.vectors import Array64, all_finite

DIRECTIONS = 64
"""The most directions in which products are summed."""
_COUNT, _PRODUCT = 0.25, 0.65
"""Weights of an example's count and of its products, beside features of length at most 1. Chosen on development sets."""
SENSITIVITY = math.sqrt(1 + _COUNT**2 + _PRODUCT**2)
"""The largest L2 norm of what one example adds, before it is rounded."""
_SHRINKAGE = 0.7
"""Part of the expected squared noise that is taken off a mean's squared length. Chosen on development sets."""
_PRIOR = 0.5
"""Power of the labels' shares in their prior: between equal priors and the clients' shares. Chosen on development sets."""


@dataclass(frozen=True)
class Frame(Units):
    """A public frame of ``F`` features. Half of the public texts have length 1 or less in its units.

    Attributes:
        directions: ``(m, F)`` orthonormal rows, or rows of 0 where public text spans fewer.
    """

    directions: Array64

    @classmethod
    def of(cls, features: Array64) -> Self:
        """From ``(N, F)`` features of public text; at least two texts."""
        units = Units.of(features)
        offset, scale = units.offset, units.scale
        standard = (features - offset) / scale
        scale = scale * max(float(np.median(np.linalg.norm(standard, axis=1))), float(np.finfo(np.float32).tiny))
        _, strengths, rows = np.linalg.svd(standard - standard.mean(axis=0), full_matrices=False)
        directions = np.zeros((cls.direction_count(features.shape[1]), features.shape[1]))
        spanned = min(len(directions), int((strengths > 1e-9 * strengths.max(initial=0.0)).sum()))
        directions[:spanned] = rows[:spanned]
        return cls(offset, scale, directions)

    @staticmethod
    def direction_count(features: int) -> int:
        """``m`` of ``F`` features: at least one of them is left for the other directions."""
        return min(DIRECTIONS, features - 1)

    @classmethod
    def row_size(cls, features: int) -> int:
        """How many numbers of the sums one example can change: its class's features and count, and its products."""
        directions = cls.direction_count(features)
        return features + 1 + directions * (directions + 1) // 2 + 1

    def rows(self, features: npt.NDArray[np.floating]) -> Array64:
        """``(N, row_size)``: what each example adds, of length at most :data:`SENSITIVITY`.

        In order: features, count, products of coordinates (those of two different ones times √2, so that lengths are kept), and
        the squared length outside of the directions.
        """
        standard = (features.astype(np.float64) - self.offset) / self.scale
        standard[~np.isfinite(standard).all(axis=1)] = 0.0
        standard /= np.maximum(1.0, np.linalg.norm(standard, axis=1, keepdims=True))
        along = products_alone(standard, np.ascontiguousarray(self.directions.T))
        first, second = np.triu_indices(along.shape[1])
        products = along[:, first] * along[:, second] * np.where(first == second, 1.0, math.sqrt(2))
        outside = np.maximum(np.square(standard).sum(axis=1) - np.square(along).sum(axis=1), 0.0)
        counted = np.full((len(standard), 1), _COUNT)
        return np.concatenate([standard, counted, _PRODUCT * products, _PRODUCT * outside[:, None]], axis=1)


@dataclass(frozen=True)
class FramedSums:
    """Sums of :meth:`Frame.rows` over examples, and the frame, which is public.

    Attributes:
        moment: ``(F + 1, C)`` float64: sums of features and counts, by class.
        products: ``(m (m + 1) / 2 + 1,)`` float64: sums of products, and of squared lengths outside of the directions.
        frame: of all clients.
    """

    moment: Array64
    products: Array64
    frame: Frame

    @classmethod
    def of(cls, rows: Array64, labels: Sequence[int], classes: int, frame: Frame) -> Self:
        """Sum ``(N, row_size)`` rows; ``labels`` are ``(N,)`` positions."""
        own = len(frame.offset) + 1
        moment = rows[:, :own].T @ np.eye(classes)[list(labels)].reshape(-1, classes)
        return cls(moment, rows[:, own:].sum(axis=0), frame)

    @classmethod
    def from_wire(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """From :attr:`on_wire`.

        Raises:
            KeyError, ValueError: an array is missing or does not fit the others.
        """
        moment, products, offset, scale, directions = (
            arrays[name].astype(np.float64) for name in ("moment", "products", "offset", "scale", "directions")
        )
        size = len(moment) - 1
        count = Frame.direction_count(size) if size > 1 else 0
        shapes = products.shape, offset.shape, scale.shape, directions.shape
        if count < 1 or shapes != ((count * (count + 1) // 2 + 1,), (size,), (size,), (count, size)):
            raise ValueError(f"moment: received {moment.shape}, which does not fit the shapes {shapes} of the other arrays")
        return cls(moment, products, Frame(offset, scale, directions))

    def __add__(self, other: FramedSums) -> FramedSums:
        """The sums over the examples of both, in the frame of this one."""
        return FramedSums(self.moment + other.moment, self.products + other.products, self.frame)

    @property
    def on_wire(self) -> dict[str, Array64]:
        """All arrays by name."""
        frame = self.frame
        public = {"offset": frame.offset, "scale": frame.scale, "directions": frame.directions}
        return {"moment": self.moment, "products": self.products} | public

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite, and no scale is 0."""
        return all_finite(self.on_wire) and bool((self.frame.scale > 0).all())

    def solve(self, deviation: float, projection: Array64 | None, pooled_layers: tuple[int, ...] = ()) -> Readout:
        """The linear discriminant of all examples, in which a label is likely beforehand by the root of its share.

        Args:
            deviation: the standard deviation of the noise on each number.
            projection: the clients' :func:`ifedicl.core.readout.projection`.
            pooled_layers: those at which the clients read the text's mean states.
        """
        frame = self.frame
        size, classes = len(frame.offset), self.moment.shape[1]
        directions, others = frame.directions, size - len(frame.directions)
        counts = np.maximum(self.moment[-1] / _COUNT, 1.0)  # (C,)
        total = counts.sum()
        means = self.moment[:-1] / counts  # (F, C)
        centre = self.moment[:-1].sum(axis=1) / total
        along, outside = self._covariance(means, counts)
        # Noise alone gives a symmetric matrix eigenvalues up to this.
        floor = outside + deviation / _PRODUCT * math.sqrt(2 * len(directions)) / total
        differences = means - centre[:, None]
        inside = directions @ differences  # (m, C)
        noise = _SHRINKAGE * (deviation / counts) ** 2
        beyond = _shrunk(differences - directions.T @ inside, noise * others)
        inside = _shrunk(inside, noise * len(directions))
        values, vectors = np.linalg.eigh(along)
        weighted = (vectors / (np.maximum(values, 0.0) + floor)) @ vectors.T @ inside
        weights = directions.T @ weighted + beyond / (outside + floor)  # (F, C)
        lengths = (weighted * inside).sum(axis=0) + np.square(beyond).sum(axis=0) / (outside + floor)
        offset = -centre @ weights - lengths / 2 + _PRIOR * np.log(counts / total)
        # From the frame back to the features as they are.
        raw = weights / frame.scale[:, None]
        intercept = offset - frame.offset @ raw
        hidden = size - classes
        of_states = raw[:hidden] if projection is None else projection @ raw[:hidden]
        stacked = np.concatenate([of_states, raw[hidden:], intercept[None]]).T
        return Readout(stacked.astype(np.float32), pooled_layers).coarse

    def _covariance(self, means: Array64, counts: Array64) -> tuple[Array64, float]:
        """Within classes: ``(m, m)`` in the directions, and the variance in each other one."""
        directions, total = self.frame.directions, counts.sum()
        first, second = np.triu_indices(len(directions))
        gram = np.zeros((len(directions), len(directions)))
        gram[first, second] = self.products[:-1] / np.where(first == second, 1.0, math.sqrt(2)) / _PRODUCT
        gram += np.triu(gram, 1).T
        inside = directions @ means  # (m, C)
        within = gram / total - (inside * (counts / total)) @ inside.T
        others = len(self.frame.offset) - len(directions)
        outside = max(float(self.products[-1]) / _PRODUCT, 1e-6) / total / others
        return within, outside


def _shrunk(columns: Array64, noise: Array64) -> Array64:
    """Columns ``(D, C)`` shortened by the squared noise ``(C,)`` that is expected in each."""
    lengths = np.square(columns).sum(axis=0)
    result: Array64 = columns * np.maximum(0.0, 1.0 - noise / np.maximum(lengths, np.finfo(np.float64).tiny))
    return result
