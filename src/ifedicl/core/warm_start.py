"""Warm start: calibration starts from the coefficients of a related task on the same model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32


@dataclass(frozen=True)
class Start:
    """What a calibration starts from.

    Attributes:
        coefficients: those of the first round.
        rounds: number of rounds planned.
        core_kept: the share of Γ's norm that the change of basis preserves, in [0, 1]; None if no Γ was projected.
    """

    coefficients: Coefficients
    rounds: int
    core_kept: float | None = None


def warm_start(old: Coefficients, old_context: Context, initial: Coefficients, context: Context, rounds: int) -> Start:
    """The old task's λ and β, and its Γ projected to the new basis; ``initial`` is what a cold start would begin with.

    Raises:
        ValueError: the two contexts are not of the same layers of one model.
    """
    if old_context.layers != context.layers:
        raise ValueError(f"layers: received {old_context.layers} of the old task; allowed: {context.layers}")
    if old.scales.shape != initial.scales.shape:
        raise ValueError(f"scales: received {old.scales.shape} of the old task; allowed: {initial.scales.shape}")
    if initial.core is None or old.core is None or old_context.basis is None or context.basis is None:
        return Start(Coefficients(old.scales, initial.core), rounds)
    core = projected_core(old.core, old_context.basis, context.basis)
    before = float(np.linalg.norm(old.core))
    preserved = float(np.linalg.norm(core)) / before if before else 1.0
    return Start(Coefficients(old.scales, core.astype(np.float32)).rounded, rounds, preserved)


def projected_core(core: Array32, basis: Array32, new_basis: Array32) -> Array32:
    """``(L, 2, r', r')``: ``Γ' = U'Uᵀ Γ UU'ᵀ``, the part of ``UᵀΓU`` that lies within the new directions.

    Args:
        core: ``(L, 2, r, r)``, Γ.
        basis: ``(L, 2, r, d)``, U.
        new_basis: ``(L, 2, r', d)``, U'.
    """
    turn = new_basis @ basis.swapaxes(2, 3)  # (L, 2, r', r)
    return turn @ core @ turn.swapaxes(2, 3)
