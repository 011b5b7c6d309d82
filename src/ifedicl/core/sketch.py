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

_WIDE = 14_250
"""From so many features on, sums have no more bytes."""
_FEWEST, _MOST = 8, 64
"""Directions of a sketch, where there are refinements: more of them are worth less than more refinements."""
_WORD_DIRECTIONS = 4
"""Label words have at most this many directions."""


@dataclass(frozen=True)
class Budget:
    """About how many bytes each part of the sums takes for each feature.

    Attributes:
        label: of a moment with one label.
        rest: of the deviation and the units.
        direction: of a number of the sketch.
        product: of a number of a refinement.
        one_shot: of all of it, without rounds.
        with_rounds: of all of it, with rounds.
    """

    label: float
    rest: float
    direction: float
    product: float
    one_shot: float
    with_rounds: float

    def counts(
        self, features: int, classes: int, refinements: int, *, is_one_shot: bool, overlaps: bool = False
    ) -> tuple[int, int]:
        """Directions of the sketch, and of each refinement, of ``F`` features and ``C`` labels.

        With many labels the moments are most of the bytes, and directions may have a quarter as many; where an example may have
        several labels (``overlaps``), as many, since each label is a regression of its own. The columns of a solution sum to 0,
        or the first is 0 where they overlap, so ``C - 1`` directions hold it.
        """
        most, others = self.one_shot if is_one_shot else self.with_rounds, classes * self.label + self.rest
        left = max(most * min(1.0, _WIDE / features) - others, others / (1 if overlaps else 4))
        if not refinements:
            return max(_FEWEST, int(left / self.direction)), 0
        columns = min(max(1, classes - 1), max(1, int((left - _FEWEST * self.direction) / (refinements * self.product))))
        return min(_MOST, max(_FEWEST, int((left - refinements * columns * self.product) / self.direction))), columns


OWN, SUMMED = Budget(1.0, 8.0, 0.5, 1.0, 41.0, 100.0), Budget(2.25, 9.0, 1.25, 1.65, 43.0, 150.0)
"""Of a client's own sums (95 KB at 2,308 features without rounds, 584 KB from 14,250 on), and of those in a secure sum, whose
numbers need more bits."""
_SMALLEST_EIGENVALUE = 1e-3
"""Of the largest: below it a direction holds more rounding than text, and is left to the diagonal."""


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions ``Q``, ``(F, m)``: a block for each part of the features, and those of refinements behind them.

    Attributes:
        blocks: ``(f, k)`` float64 each, with orthonormal columns; all ``f`` sum to ``F``.
        refined: ``(F, j)`` float64, with orthonormal columns; None: none.
    """

    blocks: tuple[Array64, ...]
    refined: Array64 | None = None

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
        refined = 0 if self.refined is None else self.refined.shape[1]
        return sum(len(block) for block in self.blocks), sum(block.shape[1] for block in self.blocks) + refined

    @property
    def columns(self) -> Array64:
        """``(F, m)``: all of them."""
        from scipy.linalg import block_diag  # few processes need it

        whole: Array64 = block_diag(*self.blocks)
        return whole if self.refined is None else np.concatenate([whole, self.refined], axis=1)

    def along(self, rows: npt.NDArray[np.floating]) -> Array64:
        """``(N, m)``: ``(N, F)`` rows times the directions."""
        ends = np.cumsum([len(block) for block in self.blocks])[:-1]
        parts = [part @ block for part, block in zip(np.split(rows, ends, axis=1), self.blocks, strict=True)]
        return np.concatenate(parts if self.refined is None else [*parts, rows @ self.refined], axis=1)

    def with_more(self, refined: npt.NDArray[np.floating]) -> Directions:
        """The same with ``(F, k)`` directions behind them."""
        more = refined.astype(np.float64)
        return Directions(self.blocks, more if self.refined is None else np.concatenate([self.refined, more], axis=1))


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

    def plus(self, vector: Array64) -> Gram:
        """``G + v vᵀ``, for a vector ``(F,)``."""
        return Gram(np.concatenate([self.factor, vector[:, None]], axis=1), self.rest)

    def solve(self, moment: Array64, penalties: Array64) -> Array64:
        """``(F, C)``: ``W`` with ``(G + diag(penalties)) W = moment``, by Woodbury's identity, in ``O(F k²)``."""
        inverse = 1.0 / (self.rest + penalties)
        scaled = self.factor * inverse[:, None]
        small = np.eye(self.factor.shape[1]) + self.factor.T @ scaled
        direct: Array64 = moment * inverse[:, None]
        solution: Array64 = direct - scaled @ np.linalg.solve(small, self.factor.T @ direct)
        return solution
