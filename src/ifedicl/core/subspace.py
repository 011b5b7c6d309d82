"""The context subspace: the directions in which mean context vectors differ, within which Γ changes the writes.

This goes beyond the paper, whose scalars can only scale a write. With ``U`` (``r`` orthonormal rows for each write),
``y ← β·y + λ·v + Uᵀ Γ U y`` is a low-rank update with a frozen basis: ``r²`` numbers where LoRA learns ``2dr``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import WRITES, Array32, Array64, all_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Context:
    """What the coordinator sends once before calibration: global vectors and basis.

    Attributes:
        vectors: ``(L, 2, d)`` float32, the global context vectors ``v`` of the ``L`` injected layers.
        basis: ``(L, 2, r, d)`` float32, ``U`` (:func:`subspace_basis`); None without a subspace.
        first_layer: the first injected layer of the model, at which these arrays and those of the coefficients begin.
    """

    vectors: Array32
    basis: Array32 | None = None
    first_layer: int = 0

    def __post_init__(self) -> None:
        shape = self.vectors.shape
        if self.vectors.ndim != 3 or shape[1] != len(WRITES) or self.vectors.dtype != np.float32:
            raise ValueError(f"vectors: received {self.vectors.dtype} {shape}; allowed: float32 (L, 2, d)")
        if not isinstance(self.first_layer, int) or self.first_layer < 0:
            raise ValueError(f"first_layer: received {self.first_layer!r}; allowed: 0 or more")
        if (basis := self.basis) is None:
            return
        if basis.ndim != 4 or not basis.size or (*basis.shape[:2], basis.shape[3]) != shape or basis.dtype != np.float32:
            raise ValueError(
                f"basis: received {basis.dtype} {basis.shape}; allowed: float32 (L, 2, r, d) that fits vectors {shape}"
            )

    @property
    def layers(self) -> range:
        """The injected layers of the model."""
        return range(self.first_layer, self.first_layer + len(self.vectors))

    @property
    def rank(self) -> int:
        """``r``; 0 without a subspace."""
        return 0 if self.basis is None else self.basis.shape[2]

    @property
    def arrays(self) -> dict[str, Array32]:
        """The arrays by name; ``basis`` only where there is a subspace."""
        return {"vectors": self.vectors} | ({} if self.basis is None else {"basis": self.basis})

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all_finite(self.arrays)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of all numbers."""
        return hashlib.sha256(b"".join(array.tobytes() for array in self.arrays.values())).hexdigest()

    @classmethod
    def from_wire(cls, arrays: Mapping[str, npt.NDArray[Any]], first_layer: int) -> Self:
        """From :meth:`on_wire`."""
        return cls(**{name: array.astype(np.float32) for name, array in arrays.items()}, first_layer=first_layer)

    def on_wire(self, dtype: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays as they are sent in ``dtype``; infinite where ``dtype`` cannot hold a number."""
        with np.errstate(over="ignore"):
            return {name: array.astype(dtype) for name, array in self.arrays.items()}

    def rounded(self, dtype: str) -> Self:
        """The context as the other side receives it."""
        return self.from_wire(self.on_wire(dtype), self.first_layer)

    def on(self, device: torch.device) -> ContextTensors:
        """The context as tensors on a device."""
        from ifedicl.core.transfer import to_device  # torch takes seconds, and a FLARE server, which has no model, needs none

        tensors = {name: to_device(array, device) for name, array in self.arrays.items()}
        return ContextTensors(tensors["vectors"], tensors.get("basis"), self.first_layer)


@dataclass(frozen=True)
class ContextTensors:
    """A :class:`Context` on the model's device; shapes and dtypes as there."""

    vectors: Tensor
    basis: Tensor | None
    first_layer: int = 0

    @property
    def layers(self) -> range:
        """The injected layers of the model."""
        return range(self.first_layer, self.first_layer + len(self.vectors))


def subspace_basis(means: Array64, rank: int, draw: np.random.Generator, *, first_layer: int = 0) -> Array32:
    """``(L, 2, r, d)``: for each write the leading directions among the centred mean vectors.

    Where the means span fewer than ``rank`` directions (``M`` means span at most ``M - 1``), random directions orthogonal to
    them follow. Signs are fixed: equal means give an equal basis on every machine.

    Args:
        means: ``(M, L, 2, d)``: the means of the classes.
        rank: ``r``, at most ``d``.
        draw: gives the random directions.
        first_layer: the model's layer at which the means begin. The draws of lower layers are skipped, so that a layer's
            directions do not depend on where the injection begins.
    """
    _, layers, writes, width = means.shape
    for _ in range(first_layer * writes):
        draw.standard_normal((rank, width))
    basis = np.empty((layers, writes, rank, width), dtype=np.float32)
    for layer in range(layers):
        for write in range(writes):
            basis[layer, write] = _directions(means[:, layer, write], rank, draw)
    return basis


def _directions(means: Array64, rank: int, draw: np.random.Generator) -> Array64:
    """``(r, d)`` of one write."""
    drawn = draw.standard_normal((rank, means.shape[1]))
    centred = means - means.mean(axis=0) if len(means) else means
    _, strengths, rows = np.linalg.svd(centred, full_matrices=False)
    spanned = min(rank, int((strengths > 1e-9 * max(strengths, default=0.0)).sum()))
    # QR keeps the span of each leading part, and so the order of the directions.
    directions: Array64 = np.linalg.qr(np.concatenate([rows[:spanned], drawn[spanned:]]).T)[0].T
    largest = directions[np.arange(rank), np.abs(directions).argmax(axis=1)]
    signed: Array64 = directions * np.sign(largest)[:, None]
    return signed
