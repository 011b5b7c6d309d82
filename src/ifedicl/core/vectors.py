"""Context vectors: what the layers of the frozen model write at one token, summed over demonstrations (paper Eq. 1-2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

Array64: TypeAlias = npt.NDArray[np.float64]
Array32: TypeAlias = npt.NDArray[np.float32]

WRITES = ("attention", "mlp")
"""The two writes to the residual stream of each layer, in the order of every ``(L, 2, ...)`` array. ``L`` counts the injected
layers only: nothing of the others is read, sent or stored."""
LARGEST_MEAN = 1e6
"""Far above what a model writes; sums of such means fit every format in which they travel."""


def all_finite(arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether no number of any array is NaN or infinite."""
    return all(bool(np.isfinite(array).all()) for array in arrays.values())


@dataclass(frozen=True)
class ContextVectors:
    """Means and counts. Sums follow from them, so vectors of several clients and of later examples can be combined.

    Attributes:
        means: ``(G, L, 2, d)`` float64, or float32 if they were sent: for each group of examples, injected layer and write, the
            mean of the writes at the read position; zero for an empty group. ``G`` is 1 (all examples together) or the number
            of classes.
        counts: ``(G,)`` int64: examples in each group.
    """

    means: Array32 | Array64
    counts: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.means.ndim != 4 or self.means.shape[2] != len(WRITES) or self.counts.shape != self.means.shape[:1]:
            raise ValueError(
                f"means, counts: received {self.means.shape} and {self.counts.shape}; allowed: (G, L, 2, d) and (G,)"
            )

    @classmethod
    def zeros(cls, groups: int, layers: int, width: int) -> Self:
        """The vectors of no example."""
        return cls(np.zeros((groups, layers, len(WRITES), width)), np.zeros(groups, dtype=np.int64))

    @classmethod
    def of_sums(cls, sums: Array64, counts: npt.NDArray[np.int64]) -> Self:
        """From ``(G, L, 2, d)`` sums over examples."""
        return cls(sums / np.maximum(counts, 1)[:, None, None, None], counts)

    @classmethod
    def from_wire(cls, means: npt.NDArray[np.floating], counts: npt.NDArray[np.integer]) -> Self:
        """From ``(G, L, 2, d)`` means and ``(G,)`` counts as they are sent."""
        if counts.dtype.kind != "i" or means.dtype.kind != "f":
            raise ValueError(f"means, counts: received {means.dtype} and {counts.dtype}; allowed: floats and integers")
        return cls(means.astype(np.float32), counts.astype(np.int64))

    @property
    def in_float32(self) -> Self:
        """The vectors in float32, which takes half the memory."""
        return type(self)(self.means.astype(np.float32), self.counts)

    @property
    def sums(self) -> Array64:
        """``(G, L, 2, d)``: sums over the examples of each group."""
        return self.means.astype(np.float64) * self.counts[:, None, None, None]

    @property
    def examples(self) -> int:
        """The number of examples in all groups."""
        return int(self.counts.sum())

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite and no count is negative."""
        return bool(np.isfinite(self.means).all() and (self.counts >= 0).all())

    def combine(self, other: ContextVectors) -> ContextVectors:
        """The vectors of both sets of examples together."""
        return ContextVectors.of_sums(self.sums + other.sums, self.counts + other.counts)

    def merged(self) -> ContextVectors:
        """The same examples in one group."""
        if len(self.counts) == 1:
            return self
        return ContextVectors.of_sums(self.sums.sum(axis=0, keepdims=True), self.counts.sum(keepdims=True))

    @property
    def present_means(self) -> Array64:
        """``(M, L, 2, d)``: the means of the groups that are not empty."""
        return self.means[self.counts > 0].astype(np.float64)

    def mean(self) -> Array64:
        """``(L, 2, d)``: the mean over all examples (Eq. 2)."""
        mean: Array64 = self.sums.sum(axis=0) / max(self.examples, 1)
        return mean


def pooled(vectors: Sequence[ContextVectors]) -> ContextVectors:
    """All clients' examples together, combined in the order given."""
    return reduce(ContextVectors.combine, vectors)


def uniform_mean(vectors: Sequence[ContextVectors]) -> Array32:
    """``(L, 2, d)``: every client has the same weight (Eq. 3); added in the order given.

    With several groups (classes), each group is first averaged over the clients that hold it, then the groups are averaged.
    """
    totals: Array64 = np.zeros(vectors[0].means.shape)
    for vector in vectors:
        totals += vector.means
    holders = np.stack([vector.counts > 0 for vector in vectors]).sum(axis=0)  # (G,)
    groups = totals[holders > 0] / holders[holders > 0][:, None, None, None]
    mean: Array32 = groups.mean(axis=0).astype(np.float32)
    return mean


def pooled_mean(vectors: Sequence[ContextVectors]) -> Array32:
    """``(L, 2, d)``: every example has the same weight; several groups are averaged with equal weight."""
    mean: Array32 = pooled(vectors).present_means.mean(axis=0).astype(np.float32)
    return mean
