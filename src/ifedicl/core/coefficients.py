"""Injection coefficients: the few hundred or thousand numbers that the federation calibrates (paper Eq. 4-7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import WRITES, Array32
from ifedicl.settings import InjectionSettings

CONTEXT, ACTIVATION = 0, 1
"""Positions of λ (``context_scale``) and β (``activation_scale``) on the last axis."""


@dataclass(frozen=True)
class Form:
    """Which numbers there are to calibrate.

    Attributes:
        layers: ``L``, those that are injected; the other layers of the model have no numbers.
        rank: ``r`` of the context subspace; 0: scalars only, as in the paper.
    """

    layers: int
    rank: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each array that this form has, by its name."""
        shapes: dict[str, tuple[int, ...]] = {"scales": (self.layers, len(WRITES), 2)}
        if self.rank:
            shapes["core"] = (self.layers, len(WRITES), self.rank, self.rank)
        return shapes


@dataclass(frozen=True)
class Coefficients:
    """``Λ = {λ, β}`` of every write; past the paper also Γ of every write.

    Attributes:
        scales: ``(L, 2, 2)`` float32: layer, write, (λ, β).
        core: ``(L, 2, r, r)`` float32: Γ (``subspace_core``); None without a subspace.
    """

    scales: Array32
    core: Array32 | None = None

    def __post_init__(self) -> None:
        if self.scales.ndim != 3:
            raise ValueError(f"scales {self.scales.shape} are not (L, 2, 2)")
        for name, shape in self.form.shapes.items():
            array = self.arrays[name]
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not float32 {shape}")

    @classmethod
    def of(cls, arrays: Mapping[str, Array32]) -> Self:
        """From :attr:`arrays`."""
        return cls(arrays["scales"], arrays.get("core"))

    @classmethod
    def from_wire(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """From :attr:`on_wire`."""
        return cls.of(
            {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in arrays.items()}
        )

    @property
    def on_wire(self) -> dict[str, npt.NDArray[Any]]:
        """As they cross the network: Γ in float16, which halves a round's bytes; λ and β, near 1 and few, as they are."""
        return {name: array.astype(np.float16) if name == "core" else array for name, array in self.arrays.items()}

    @property
    def rounded(self) -> Self:
        """As the other side has them."""
        return self.from_wire(self.on_wire)

    @classmethod
    def identity(cls, form: Form) -> Self:
        """λ=0, β=1, Γ=0: the raw model, zero-shot."""
        arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in form.shapes.items()}
        arrays["scales"][..., ACTIVATION] = 1.0
        return cls.of(arrays)

    @property
    def form(self) -> Form:
        """Which numbers these are."""
        return Form(len(self.scales), 0 if self.core is None else self.core.shape[-1])

    @property
    def arrays(self) -> dict[str, Array32]:
        """By name, those that there are."""
        return {"scales": self.scales} | ({} if self.core is None else {"core": self.core})

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(bool(np.isfinite(array).all()) for array in self.arrays.values())

    @property
    def active(self) -> npt.NDArray[np.bool_]:
        """``(L, 2)``: the writes that these coefficients change at all."""
        changed: npt.NDArray[np.bool_] = (self.scales[..., CONTEXT] != 0) | (self.scales[..., ACTIVATION] != 1)
        return changed if self.core is None else changed | self.core.any(axis=(2, 3))

    @property
    def is_identity(self) -> bool:
        """Whether the model is left as it is."""
        identity = self.identity(self.form).arrays
        return all(np.array_equal(array, identity[name]) for name, array in self.arrays.items())

    @property
    def count(self) -> int:
        """Numbers that are calibrated, where every write is active."""
        return sum(array.size for array in self.arrays.values())


def cold_start(form: Form, injection: InjectionSettings) -> Coefficients:
    """What a calibration begins with (paper: λ = 0.1, β = 1), unless a calibrated task lends its own."""
    start = Coefficients.identity(form)
    start.scales[..., CONTEXT] = injection.context_scale
    return start
