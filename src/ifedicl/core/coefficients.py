"""Injection coefficients: the few hundred numbers that the federation calibrates (paper Eq. 4-7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import WRITES

CONTEXT, ACTIVATION = 0, 1
"""Positions of λ (``context_scale``) and β (``activation_scale``) on the last axis."""


@dataclass(frozen=True)
class Coefficients:
    """``Λ = {λ, β}`` of every write.

    Attributes:
        scales: ``(L, 2, 2)`` float32: layer, write, (λ, β).
    """

    scales: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.scales.ndim != 3 or self.scales.shape[1:] != (len(WRITES), 2):
            raise ValueError(f"scales {self.scales.shape} are not (L, 2, 2)")
        if self.scales.dtype != np.float32:
            raise ValueError(f"scales are {self.scales.dtype}, not float32")

    @classmethod
    def identity(cls, layers: int) -> Self:
        """λ=0, β=1 everywhere: the raw model, zero-shot."""
        return cls.initial(layers, range(0), (), context_scale=0.0, activation_scale=1.0)

    @classmethod
    def initial(
        cls, layers: int, active_layers: range, writes: tuple[str, ...], *, context_scale: float, activation_scale: float
    ) -> Self:
        """The given λ and β at the active writes, identity elsewhere."""
        scales = np.zeros((layers, len(WRITES), 2), dtype=np.float32)
        scales[..., ACTIVATION] = 1.0
        scales[active_writes(layers, active_layers, writes)] = (context_scale, activation_scale)
        return cls(scales)

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.scales).all())

    @property
    def active(self) -> npt.NDArray[np.bool_]:
        """``(L, 2)``: the writes that these coefficients change at all."""
        changed: npt.NDArray[np.bool_] = (self.scales[..., CONTEXT] != 0) | (self.scales[..., ACTIVATION] != 1)
        return changed


def active_writes(layers: int, active_layers: range, writes: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """``(L, 2)``: the writes of a model with ``layers`` layers that are injected."""
    active = np.zeros((layers, len(WRITES)), dtype=np.bool_)
    for write in writes:
        active[list(active_layers), WRITES.index(write)] = True
    return active
