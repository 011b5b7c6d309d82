"""The context subspace: directions in which mean context vectors differ, where Γ may move the writes.

Past the paper, whose scalars can only stretch a write. With ``U`` (``r`` orthonormal rows for each write),
``y ← β·y + λ·v + Uᵀ Γ U y`` is a low-rank update with a frozen basis: ``r²`` numbers where LoRA learns ``2dr``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.core.vectors import WRITES, Array32, Array64


@dataclass(frozen=True)
class Context:
    """What the coordinator hands out once, and the coefficients then weigh.

    Attributes:
        vectors: ``(L, 2, d)`` float32, the global context vectors ``v`` of the ``L`` injected layers.
        basis: ``(L, 2, r, d)`` float32, ``U`` (``subspace_basis``); None without a subspace.
        first_layer: the model's layer that the arrays begin at; those of the coefficients begin there too.
    """

    vectors: Array32
    basis: Array32 | None = None
    first_layer: int = 0

    def __post_init__(self) -> None:
        shape = self.vectors.shape
        if self.vectors.ndim != 3 or shape[1] != len(WRITES) or self.vectors.dtype != np.float32:
            raise ValueError(f"vectors {self.vectors.dtype} {shape} are not float32 (L, 2, d)")
        if not isinstance(self.first_layer, int) or self.first_layer < 0:
            raise ValueError(f"first_layer {self.first_layer!r} is no layer")
        basis = self.basis
        if basis is None:
            return
        if basis.ndim != 4 or (*basis.shape[:2], basis.shape[3]) != shape or basis.dtype != np.float32:
            raise ValueError(f"basis {basis.dtype} {basis.shape} is not float32 (L, 2, r, d) for vectors {shape}")

    @property
    def layers(self) -> range:
        """The model's layers that the arrays are of."""
        return range(self.first_layer, self.first_layer + len(self.vectors))

    @property
    def rank(self) -> int:
        """``r``; 0 without a subspace."""
        return 0 if self.basis is None else self.basis.shape[2]

    @property
    def arrays(self) -> dict[str, Array32]:
        """By name, those that there are."""
        return {"vectors": self.vectors} | ({} if self.basis is None else {"basis": self.basis})

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(bool(np.isfinite(array).all()) for array in self.arrays.values())

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of all numbers."""
        content = hashlib.sha256()
        for array in self.arrays.values():
            content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()

    @classmethod
    def from_wire(cls, arrays: Mapping[str, npt.NDArray[Any]], first_layer: int) -> Self:
        """From :meth:`on_wire`."""
        return cls(**{name: array.astype(np.float32) for name, array in arrays.items()}, first_layer=first_layer)

    def on_wire(self, dtype: str) -> dict[str, npt.NDArray[Any]]:
        """As it crosses the network in ``dtype``; infinite where that cannot hold it."""
        with np.errstate(over="ignore"):
            return {name: array.astype(dtype) for name, array in self.arrays.items()}

    def rounded(self, dtype: str) -> Self:
        """As the other side has it."""
        return self.from_wire(self.on_wire(dtype), self.first_layer)

    def on(self, device: torch.device) -> ContextTensors:
        """The same on a device."""
        basis = None if self.basis is None else torch.from_numpy(self.basis).to(device)
        return ContextTensors(torch.from_numpy(self.vectors).to(device), basis, self.first_layer)


@dataclass(frozen=True)
class ContextTensors:
    """A :class:`Context` where the model runs.

    Attributes:
        vectors: ``(L, 2, d)`` float32.
        basis: ``(L, 2, r, d)`` float32 or None.
        first_layer: the model's layer that both begin at.
    """

    vectors: Tensor
    basis: Tensor | None
    first_layer: int = 0

    @property
    def layers(self) -> range:
        """The model's layers that the tensors are of."""
        return range(self.first_layer, self.first_layer + len(self.vectors))


def subspace_basis(means: Array64, rank: int, draw: np.random.Generator, *, first_layer: int = 0) -> Array32:
    """``(L, 2, r, d)``: for each write the leading directions among centred mean vectors.

    Where the means span fewer than ``rank`` directions (``M`` of them span ``M - 1`` at most), drawn ones follow, orthogonal to
    them. Signs are fixed, so that equal means give an equal basis wherever it is computed.

    Args:
        means: ``(M, L, 2, d)``, of classes.
        rank: ``r``, at most ``d``.
        draw: of the directions that the means do not give.
        first_layer: the model's layer that the means begin at; the draws of those below are passed over, so that a layer's
            directions are the same wherever the injection begins.
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
    spanned = int((strengths > 1e-9 * max(strengths, default=0.0)).sum())
    own = rows[: min(rank, spanned)]
    # QR keeps the span of each leading part, and so the order of the directions.
    directions: Array64 = np.linalg.qr(np.concatenate([own, drawn[len(own) :]]).T)[0].T
    largest = directions[np.arange(rank), np.abs(directions).argmax(axis=1)]
    signed: Array64 = directions * np.sign(largest)[:, None]
    return signed
