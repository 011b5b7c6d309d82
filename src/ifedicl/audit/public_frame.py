"""Vectors in the units of public text: around its mean, each write scaled to the same size.

A write of a deep layer is hundreds of times longer than one of an early layer. One clip bounds a whole vector, so without the
scaling it would keep the long writes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array32, Array64


@dataclass(frozen=True)
class PublicFrame:
    """A linear view of ``(L, 2, d)`` vectors, the same at every client: no client's text is in it, so it costs no budget.

    Attributes:
        centre: ``(L, 2, d)``: the mean of public text.
        sizes: ``(L, 2)``: root mean square norm of public text's writes around the centre, so that each write weighs alike.
    """

    centre: Array32
    sizes: Array32

    @classmethod
    def of(cls, public: npt.NDArray[np.floating]) -> Self:
        """From ``(N, L, 2, d)`` vectors of public text, ``N`` of 2 or more."""
        centre = public.mean(axis=0, dtype=np.float64)
        sizes = np.zeros(centre.shape[:2])
        for row in public:
            sizes += np.square(row - centre).sum(axis=-1)
        return cls(centre.astype(np.float32), np.sqrt(sizes / len(public)).astype(np.float32))

    def measured(self, vectors: npt.NDArray[np.floating]) -> Array64:
        """``(N, 2Ld)`` of ``(N, L, 2, d)``: around 1 a write in norm, for text like the public one's."""
        scaled = (vectors - self.centre) / np.maximum(self.sizes, np.finfo(np.float32).tiny)[..., None]
        rows: Array64 = scaled.reshape(len(vectors), -1).astype(np.float64)
        return rows

    def restored(self, measured: npt.NDArray[np.floating]) -> Array32:
        """``(L, 2, d)``: the vector that has these ``(2Ld,)`` numbers."""
        vector: Array32 = (self.centre + measured.reshape(self.centre.shape) * self.sizes[..., None]).astype(np.float32)
        return vector
