"""A public frame of few directions. The noise that hides one example exceeds a full-width vector, but not a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.audit.public_frame import PublicFrame
from ifedicl.core.subspace import subspace_basis
from ifedicl.core.vectors import Array32, Array64

_PARTS = 32  # parts of the public text for each direction; the directions come from their means


@dataclass(frozen=True)
class NarrowFrame:
    """A :class:`PublicFrame` and directions in it.

    Attributes:
        wide: centre and sizes of public text.
        basis: ``(L, 2, r, d)`` orthonormal rows; None: all ``d`` coordinates are kept.
    """

    wide: PublicFrame
    basis: Array32 | None

    @classmethod
    def of(cls, public: npt.NDArray[np.floating], rank: int, draw: np.random.Generator) -> NarrowFrame:
        """From single vectors of public text.

        Args:
            public: ``(N, L, 2, d)``, ``N`` of 2 or more.
            rank: ``r``; 0 keeps all coordinates.
            draw: of the directions that public text does not span.
        """
        basis = None
        if rank:
            parts = np.array_split(np.arange(len(public)), min(_PARTS * rank, len(public)))
            basis = subspace_basis(np.stack([public[part].mean(axis=0, dtype=np.float64) for part in parts]), rank, draw)
        return cls(PublicFrame.of(public), basis)

    @property
    def centre(self) -> Array32:
        """``(L, 2, d)``: the mean of public text."""
        return self.wide.centre

    @property
    def sizes(self) -> Array32:
        """``(L, 2)``: of public text's writes around the centre."""
        return self.wide.sizes

    @property
    def size(self) -> int:
        """``D``: numbers of a row."""
        layers, writes, width = self.centre.shape
        return int(layers * writes * (width if self.basis is None else self.basis.shape[2]))

    def to_rows(self, vectors: npt.NDArray[np.floating]) -> Array64:
        """``(N, D)`` of ``(N, L, 2, d)``."""
        if self.basis is None:
            return self.wide.to_rows(vectors)
        inside = np.einsum("nlwd,lwrd->nlwr", vectors - self.centre, self.basis, optimize=True)
        scaled = inside / np.maximum(self.sizes, np.finfo(np.float32).tiny)[..., None]
        rows: Array64 = scaled.reshape(len(vectors), -1).astype(np.float64)
        return rows

    def to_vector(self, measured: npt.NDArray[np.floating]) -> Array32:
        """``(L, 2, d)``: the vector of a ``(D,)`` row; outside the frame it equals the public centre."""
        if self.basis is None:
            return self.wide.to_vector(measured)
        layers, writes, _ = self.centre.shape
        inside = measured.reshape(layers, writes, -1) * self.sizes[..., None]
        vector: Array32 = (self.centre + np.einsum("lwr,lwrd->lwd", inside, self.basis)).astype(np.float32)
        return vector
