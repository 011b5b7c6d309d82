"""Vectors in units of public text: centred on its mean, with each write scaled to the same size.

A write of a deep layer is hundreds of times longer than one of an early layer. One clip bounds the whole vector; without
scaling, the long writes would decide it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array32, Array64


@dataclass(frozen=True)
class PublicFrame:
    """A linear map of ``(L, 2, d)`` vectors, the same for every client. It depends on public text only, so it costs no budget.

    Attributes:
        centre: ``(L, 2, d)``: mean of public text.
        sizes: ``(L, 2)``: root mean square norm of public text's writes around the centre.
    """

    centre: Array32
    sizes: Array32

    @classmethod
    def of(cls, public: npt.NDArray[np.floating]) -> Self:
        """From ``(N, L, 2, d)`` vectors of public text, N ≥ 2."""
        centre = public.mean(axis=0, dtype=np.float64)
        sizes = np.zeros(centre.shape[:2])
        for row in public:
            sizes += np.square(row - centre).sum(axis=-1)
        return cls(centre.astype(np.float32), np.sqrt(sizes / len(public)).astype(np.float32))

    def to_rows(self, vectors: npt.NDArray[np.floating]) -> Array64:
        """``(N, 2Ld)`` rows of ``(N, L, 2, d)`` vectors; each write of typical text has a norm of about 1."""
        scaled = (vectors - self.centre) / np.maximum(self.sizes, np.finfo(np.float32).tiny)[..., None]
        return np.asarray(scaled.reshape(len(vectors), -1), dtype=np.float64)

    def to_vector(self, row: npt.NDArray[np.floating]) -> Array32:
        """``(L, 2, d)``: the vector of a ``(2Ld,)`` row."""
        return np.asarray(self.centre + row.reshape(self.centre.shape) * self.sizes[..., None], dtype=np.float32)
