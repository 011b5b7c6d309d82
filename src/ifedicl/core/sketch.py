"""A sketch of a Gram matrix: its products with a few shared directions, from which most of it follows.

``G`` has ``F²`` numbers, ``G Q`` with ``Q`` of shape ``(F, m)`` has ``F m``. Both are plain sums over examples, so sketches of
clients add up. ``G ≈ G Q (Qᵀ G Q)⁻¹ (G Q)ᵀ`` (Nyström; Williams and Seeger 2001, Halko, Martinsson and Tropp 2011), and what is
missing on the diagonal is known, because the diagonal is sent too. The rest of the matrix is left at the approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ifedicl import seeds
from ifedicl.core.vectors import Array64

ONE_SHOT_BYTES, BYTES = 84.0, 250.0
"""About how many bytes of sums a client sends for each feature, without and with rounds: 98 and 290 KB at 1,162 features."""
_WIDE = 7_024
"""From so many features on, sums have no more bytes: 590 KB without rounds."""
_FEWEST = 32
_WORD_DIRECTIONS = 4
"""Label words have at most this many directions."""


@dataclass(frozen=True)
class Width:
    """About how many bytes each part of the sums takes for each feature.

    Attributes:
        label: of a moment with one label.
        rest: of the deviation and the units.
        direction: of a number of the sketch.
    """

    label: float
    rest: float
    direction: float


OWN, SUMMED = Width(2.0, 6.0, 0.5), Width(2.25, 9.0, 1.25)
"""Of a client's own sums, and of those in a secure sum, whose numbers need more bits."""
_SMALLEST_EIGENVALUE = 1e-3
"""Of the largest: below it a direction holds more rounding than text, and is left to the diagonal."""


def direction_count(features: int, classes: int, width: Width, most: float) -> int:
    """``m`` of ``F`` features and ``C`` labels: as many as ``most`` bytes a feature allow."""
    each = most * min(1.0, _WIDE / features) - classes * width.label - width.rest
    return max(_FEWEST, int(each / width.direction))


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions ``Q``, ``(F, m)``, block by block: each part of the features has its own.

    So the sketch of a subset of parts is a part of the sketch.

    Attributes:
        blocks: ``(f, k)`` float64 each, with orthonormal columns; all ``f`` sum to ``F``, all ``k`` to ``m``.
    """

    blocks: tuple[Array64, ...]

    @classmethod
    def of(cls, states: Sequence[int], classes: int, count: int, seed: int) -> Self:
        """Seeded random directions, the same at every client.

        Args:
            states: how many features each hidden state has.
            classes: features of the label words, behind the states.
            count: of directions, about.
            seed: of the job.
        """
        words = min(classes, _WORD_DIRECTIONS)
        share = max(1, (count - words) // len(states))
        sizes = [*((size, min(size, share)) for size in states), (classes, words)]
        return cls(tuple(_block(*size, seeds.derive(seed, "sketch", place)) for place, size in enumerate(sizes)))

    @property
    def shape(self) -> tuple[int, int]:
        """``(F, m)``."""
        return sum(len(block) for block in self.blocks), sum(block.shape[1] for block in self.blocks)

    def along(self, rows: npt.NDArray[np.floating]) -> Array64:
        """``(N, m)``: ``(N, F)`` rows times the directions."""
        ends = np.cumsum([len(block) for block in self.blocks])[:-1]
        parts = np.split(rows, ends, axis=1)
        return np.concatenate([part @ block for part, block in zip(parts, self.blocks, strict=True)], axis=1)

    def places(self, parts: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The features and the directions of some parts, as positions."""
        features, directions, first = list[int](), list[int](), np.zeros(2, dtype=int)
        for place, block in enumerate(self.blocks):
            if place in parts:
                features += range(first[0], first[0] + block.shape[0])
                directions += range(first[1], first[1] + block.shape[1])
            first += block.shape
        return np.array(features), np.array(directions)

    def only(self, parts: Sequence[int]) -> Directions:
        """Those of some parts."""
        return Directions(tuple(block for place, block in enumerate(self.blocks) if place in parts))


def _block(size: int, count: int, seed: int) -> Array64:
    if count == size:
        return np.eye(size)
    columns, corner = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, count)))
    directions: Array64 = columns * np.sign(np.diagonal(corner))  # one sign on every machine
    return directions


@dataclass(frozen=True)
class Gram:
    """An approximate Gram matrix ``V Vᵀ + diag(rest)``, never made whole.

    Attributes:
        factor: ``V``, ``(F, k)`` float64.
        rest: ``(F,)`` float64, at least 0: the diagonal that is not in ``V Vᵀ``.
    """

    factor: Array64
    rest: Array64

    @classmethod
    def of(cls, sketch: Array64, diagonal: Array64, directions: Directions) -> Self:
        """From ``G Q`` ``(F, m)`` and the diagonal of ``G`` ``(F,)``. Rounded or wrong sums give a regular system too."""
        core = directions.along(sketch.T)  # (m, m): (G Q)ᵀ Q
        values, vectors = np.linalg.eigh((core + core.T) / 2)
        kept = values > _SMALLEST_EIGENVALUE * max(float(values.max(initial=0.0)), 0.0)
        factor = sketch @ (vectors[:, kept] / np.sqrt(values[kept]))
        lengths = np.square(factor).sum(axis=1)
        tiny = np.finfo(np.float64).tiny
        factor *= np.sqrt(np.minimum(1.0, diagonal / np.maximum(lengths, tiny)))[:, None]  # no row exceeds its diagonal
        return cls(factor, np.maximum(diagonal - np.square(factor).sum(axis=1), 0.0))

    def solve(self, moment: Array64, penalties: Array64) -> Array64:
        """``(F, C)``: ``W`` with ``(G + diag(penalties)) W = moment``, by Woodbury's identity, in ``O(F k²)``."""
        inverse = 1.0 / (self.rest + penalties)
        scaled = self.factor * inverse[:, None]
        small = np.eye(self.factor.shape[1]) + self.factor.T @ scaled
        direct: Array64 = moment * inverse[:, None]
        solution: Array64 = direct - scaled @ np.linalg.solve(small, self.factor.T @ direct)
        return solution
