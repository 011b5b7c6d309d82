"""Refinements of a sketch: products of the Gram matrix with the directions that the present solution needs.

Random directions hold what a Gram matrix is like on the whole. A solution depends on what it is like where the solution lies,
so the present solution's own directions are asked for next. Features are centred at the mean of all examples, which the request
brings: the products are then plain sums, and those of clients add up to those of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.rounding import dither
from ifedicl.core.units import LARGEST_FEATURE, Units
from ifedicl.core.vectors import Array64, all_finite

if TYPE_CHECKING:
    import torch

_STEPS = 127  # of a product on the wire, to each side of 0
_SKEW = 0.02
"""How far directions may be from orthonormal: float16 moves them by less than 0.002."""
_TOLERANCE = 0.05  # of rounding, relative to the largest variance along a direction


@dataclass(frozen=True)
class Refinement:
    """What is asked for.

    Attributes:
        centre: ``(F,)`` float16, the mean of the features of all clients' examples, in their units.
        directions: ``(F, k)`` float16, with orthonormal columns.
    """

    centre: npt.NDArray[np.float16]
    directions: npt.NDArray[np.float16]

    @classmethod
    def from_wire(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Self:
        """From its attributes by name.

        Raises:
            KeyError, ValueError: an array is missing or of another dtype or number of axes.
        """
        centre, directions = arrays["centre"], arrays["directions"]
        if (centre.ndim, directions.ndim) != (1, 2) or {centre.dtype, directions.dtype} != {np.dtype(np.float16)}:
            raise ValueError(
                f"centre, directions: received {centre.dtype} and {directions.dtype}; allowed: float16 (F,), (F, k)"
            )
        return cls(centre.astype(np.float16), directions.astype(np.float16))

    def fits(self, features: int, columns: int) -> bool:
        """Whether it has this many features and at most so many columns, and its numbers are what its attributes say."""
        centre, directions = self.centre.astype(np.float64), self.directions.astype(np.float64)
        if centre.shape != (features,) or directions.shape[:1] != (features,) or not 1 <= directions.shape[1] <= columns:
            return False
        if not all_finite({"centre": centre, "directions": directions}) or np.abs(centre).max() > LARGEST_FEATURE:
            return False
        return bool(np.abs(directions.T @ directions - np.eye(directions.shape[1])).max() <= _SKEW)


@dataclass(frozen=True)
class Products:
    """``Σ (x - c) (x - c)ᵀ V`` over examples, with the centre ``c`` and the directions ``V`` of a :class:`Refinement`.

    Attributes:
        examples: their number.
        products: ``(F, k)`` float64.
    """

    examples: int
    products: Array64

    @classmethod
    def of(
        cls, features: npt.NDArray[np.floating], units: Units, asked: Refinement, device: torch.device | None = None
    ) -> Self:
        """Sum over ``(N, F)`` features, on a device (None: the CPU)."""
        from ifedicl.core.transfer import to_device, to_host  # a FLARE server, which has no model, needs no torch

        centred = to_device(units.standard(features) - asked.centre.astype(np.float64), device)
        along = centred @ to_device(asked.directions.astype(np.float64), device)
        (products,) = to_host(centred.T @ along)
        return cls(len(features), products)

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.products).all())

    def is_possible(self, asked: Refinement) -> bool:
        """Whether some examples could have them: ``Vᵀ G V`` is symmetric and has no negative eigenvalue, but for rounding."""
        if self.products.shape != asked.directions.shape or not self.is_finite or self.examples < 1:
            return False
        if np.abs(self.products).max() > (2 * LARGEST_FEATURE) ** 2 * self.examples * np.sqrt(len(self.products)):
            return False
        core = asked.directions.astype(np.float64).T @ self.products
        allowed = _TOLERANCE * float(np.abs(core).max()) + float(np.abs(self.products).max()) / 8
        return bool(np.abs(core - core.T).max() <= allowed and np.linalg.eigvalsh((core + core.T) / 2).min() >= -allowed)

    @classmethod
    def from_wire(cls, examples: int, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Self:
        """From :attr:`on_wire`.

        Raises:
            KeyError, ValueError: an array is missing, does not fit the other, or is not of its dtype.
        """
        steps, scales = arrays["steps"], arrays["scales"]
        if steps.dtype != np.int8 or scales.dtype != np.float32 or steps.ndim != 2 or scales.shape != steps.shape[1:]:
            raise ValueError(f"steps: received {steps.dtype} {steps.shape}; allowed: int8 (F, k), with {scales.shape} scales")
        return cls(examples, steps.astype(np.float64) / _STEPS * scales.astype(np.float64))

    @property
    def on_wire(self) -> dict[str, npt.NDArray[np.generic]]:
        """``steps`` ``(F, k)`` int8, in 127ths of each direction's largest number, which is in ``scales`` ``(k,)`` float32.

        Steps are rounded up or down by chance, which follows from the numbers, so that sums of clients have no bias.
        """
        scales = np.abs(self.products).max(axis=0, initial=0.0)
        steps = _STEPS * self.products / np.where(scales > 0, scales, 1.0)
        whole = np.clip(np.rint(np.nan_to_num(steps) + self.dither), -_STEPS, _STEPS).astype(np.int8)
        return {"steps": whole, "scales": scales.astype(np.float32)}

    @property
    def dither(self) -> Array64:
        """``(F, k)``: what rounds the products up or down by chance."""
        return dither(self.products, self.products.shape)


def orthonormal(solution: Array64, known: Array64, columns: int) -> npt.NDArray[np.float16]:
    """``(F, k)``: the leading directions of a solution ``(F, C)`` outside of ``known`` ``(F, m)`` orthonormal columns."""
    for _ in range(2):  # once is not enough in floating point
        solution = solution - known @ (known.T @ solution)
    left, strengths, _ = np.linalg.svd(solution, full_matrices=False)
    kept = min(columns, int((strengths > 1e-6 * strengths.max(initial=0.0)).sum()))
    places = np.abs(left[:, :kept]).argmax(axis=0)
    signs = np.sign(left[places, np.arange(kept)])  # one sign on every machine
    directions: npt.NDArray[np.float16] = (left[:, :kept] * signs).astype(np.float16)
    return directions
