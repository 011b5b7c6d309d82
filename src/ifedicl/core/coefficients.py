"""Injection coefficients: the few hundred or thousand numbers that the federation calibrates (paper Eq. 4-7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import WRITES, Array32, all_finite
from ifedicl.settings import InjectionSettings

CONTEXT, ACTIVATION = 0, 1
"""Positions of λ (``context_scale``) and β (``activation_scale``) on the last axis."""
LARGEST_COEFFICIENT = 1e4
"""Far above what a calibration gives, and small enough for the wire: Γ is sent as float16."""


@dataclass(frozen=True)
class Form:
    """The shapes of the coefficients.

    Attributes:
        layers: ``L``, the number of injected layers; other layers have no coefficients.
        rank: ``r`` of the context subspace; 0: scalars only, as in the paper.
    """

    layers: int
    rank: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array, by name."""
        shapes: dict[str, tuple[int, ...]] = {"scales": (self.layers, len(WRITES), 2)}
        if self.rank:
            shapes["core"] = (self.layers, len(WRITES), self.rank, self.rank)
        return shapes


@dataclass(frozen=True)
class Coefficients:
    """``Λ = {λ, β}`` of every write; beyond the paper also Γ of every write.

    Attributes:
        scales: ``(L, 2, 2)`` float32: layer, write, (λ, β).
        core: ``(L, 2, r, r)`` float32: Γ (``subspace_core``); None without a subspace.
    """

    scales: Array32
    core: Array32 | None = None

    def __post_init__(self) -> None:
        if self.scales.ndim != 3:
            raise ValueError(f"scales {self.scales.shape} are not (L, 2, 2)")
        if self.core is not None and (self.core.ndim != 4 or not self.core.size):
            raise ValueError(f"core {self.core.shape} is not (L, 2, r, r)")
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
        """The arrays as they are sent: Γ in float16, which halves a round's bytes; λ and β, which are few, in float32."""
        return {name: array.astype(np.float16) if name == "core" else array for name, array in self.arrays.items()}

    @property
    def rounded(self) -> Self:
        """The coefficients as the other side receives them."""
        return self.from_wire(self.on_wire)

    @classmethod
    def identity(cls, form: Form) -> Self:
        """λ=0, β=1, Γ=0: the raw model, zero-shot."""
        arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in form.shapes.items()}
        arrays["scales"][..., ACTIVATION] = 1.0
        return cls.of(arrays)

    @property
    def form(self) -> Form:
        """The shapes of these coefficients."""
        return Form(len(self.scales), 0 if self.core is None else self.core.shape[-1])

    @property
    def arrays(self) -> dict[str, Array32]:
        """The arrays by name; ``core`` only where there is a subspace."""
        return {"scales": self.scales} | ({} if self.core is None else {"core": self.core})

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all_finite(self.arrays)

    @property
    def active(self) -> npt.NDArray[np.bool_]:
        """``(L, 2)``: which writes these coefficients change."""
        changed: npt.NDArray[np.bool_] = (self.scales[..., CONTEXT] != 0) | (self.scales[..., ACTIVATION] != 1)
        return changed if self.core is None else changed | self.core.any(axis=(2, 3))

    @property
    def is_identity(self) -> bool:
        """Whether these coefficients leave the model unchanged."""
        identity = self.identity(self.form).arrays
        return all(np.array_equal(array, identity[name]) for name, array in self.arrays.items())

    @property
    def is_core_alone(self) -> bool:
        """Whether λ=0 and β=1 everywhere: the change of each write is ``UᵀΓU``, of rank ``r``."""
        return np.array_equal(self.scales, self.identity(self.form).scales)

    @property
    def core_alone(self) -> Self:
        """The same Γ with λ=0 and β=1."""
        return type(self)(self.identity(self.form).scales, self.core)

    @property
    def count(self) -> int:
        """How many numbers are calibrated, if every write is active."""
        return sum(array.size for array in self.arrays.values())


def cold_start(form: Form, injection: InjectionSettings) -> Coefficients:
    """The coefficients that a calibration starts from without a warm start (paper: λ = 0.1, β = 1)."""
    start = Coefficients.identity(form)
    if injection.context_scale != "none":
        start.scales[..., CONTEXT] = injection.context_scale
    return start
