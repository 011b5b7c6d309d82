"""What public text says of a model's writes: a centre, the size of each write, and directions.

Full-width vectors drown in the noise that hides one example, so under differential privacy a vector is first measured in this
frame, which costs no budget since no client's text is in it: what leaves are a few coordinates of each write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.subspace import subspace_basis
from ifedicl.core.vectors import WRITES, Array32, Array64

_RESTS = 32  # means of parts of the public text, whose differences give the directions


@dataclass(frozen=True)
class PublicFrame:
    """A linear view of ``(L, 2, d)`` vectors, the same at every client.

    Attributes:
        centre: ``(L, 2, d)``: the mean of public text.
        sizes: ``(L, 2)``: root mean square norm of public text's writes around the centre, so that each write weighs alike.
        basis: ``(L, 2, r, d)`` orthonormal rows; None: all ``d`` coordinates are kept.
    """

    centre: Array32
    sizes: Array32
    basis: Array32 | None

    @classmethod
    def of(cls, public: npt.NDArray[np.floating], rank: int, draw: np.random.Generator) -> Self:
        """From single vectors of public text.

        Args:
            public: ``(N, L, 2, d)``, ``N`` of 2 or more.
            rank: ``r``; 0 keeps all coordinates.
            draw: of the directions that public text does not span.
        """
        centre = public.mean(axis=0, dtype=np.float64)
        sizes = np.zeros(centre.shape[:2])
        for row in public:
            sizes += np.square(row - centre).sum(axis=-1)
        basis = None
        if rank:
            parts = np.array_split(np.arange(len(public)), min(_RESTS * rank, len(public)))
            basis = subspace_basis(np.stack([public[part].mean(axis=0, dtype=np.float64) for part in parts]), rank, draw)
        return cls(centre.astype(np.float32), np.sqrt(sizes / len(public)).astype(np.float32), basis)

    @property
    def size(self) -> int:
        """``D``: numbers of a measured vector."""
        layers, writes, width = self.centre.shape
        return int(layers * writes * (width if self.basis is None else self.basis.shape[2]))

    def measured(self, vectors: npt.NDArray[np.floating]) -> Array64:
        """``(N, D)`` of ``(N, L, 2, d)``: around 1 a write in norm, for text like the public one's."""
        centred = vectors - self.centre
        inside = centred if self.basis is None else np.einsum("nlwd,lwrd->nlwr", centred, self.basis, optimize=True)
        scaled = inside / np.maximum(self.sizes, np.finfo(np.float32).tiny)[..., None]
        rows: Array64 = scaled.reshape(len(vectors), -1).astype(np.float64)
        return rows

    def restored(self, measured: npt.NDArray[np.floating]) -> Array32:
        """``(L, 2, d)``: the vector that has the ``(D,)`` coordinates; what the frame does not hold is the public centre's."""
        layers, writes, _ = self.centre.shape
        inside = measured.reshape(layers, writes, -1) * self.sizes[..., None]
        centred = inside if self.basis is None else np.einsum("lwr,lwrd->lwd", inside, self.basis)
        vector: Array32 = (self.centre + centred).astype(np.float32)
        return vector


def drawn_basis(layers: int, width: int, rank: int, draw: np.random.Generator) -> Array32:
    """``(L, 2, r, d)``: random orthonormal directions, for a projection that knows nothing of any text."""
    return subspace_basis(np.zeros((0, layers, len(WRITES), width)), rank, draw)
