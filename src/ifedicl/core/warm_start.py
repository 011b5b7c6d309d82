"""Warm start: the coefficients of a calibrated task as the start of a related one on the same model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32


@dataclass(frozen=True)
class Start:
    """What a calibration begins with.

    Attributes:
        coefficients: the first ones that clients are sent.
        rounds: how many rounds are planned from there.
        core_kept: the share of Γ's norm that survived the change of basis, in [0, 1]; None where no Γ was carried over.
    """

    coefficients: Coefficients
    rounds: int
    core_kept: float | None = None


def warm_start(old: Coefficients, old_context: Context, initial: Coefficients, context: Context, rounds: int) -> Start:
    """λ and β as they were, Γ carried over into the new basis.

    Args:
        old: of the calibrated task.
        old_context: its vectors and basis.
        initial: what a cold start would begin with.
        context: of the new task.
        rounds: planned.

    Raises:
        ValueError: the two are not of the same layers of one model.
    """
    if old_context.layers != context.layers:
        raise ValueError(f"{old_context.layers} of the old task are other layers than {context.layers}")
    if old.scales.shape != initial.scales.shape:
        raise ValueError(f"scales {old.scales.shape} of the old task do not fit {initial.scales.shape}")
    if initial.core is None or old.core is None or old_context.basis is None or context.basis is None:
        return Start(Coefficients(old.scales, initial.core), rounds)
    core = carried(old.core, old_context.basis, context.basis)
    before = float(np.linalg.norm(old.core))
    kept = float(np.linalg.norm(core)) / before if before else 1.0
    return Start(Coefficients(old.scales, core.astype(np.float32)).rounded, rounds, kept)


def carried(core: Array32, basis: Array32, new_basis: Array32) -> Array32:
    """``(L, 2, r', r')``: ``Γ' = U'Uᵀ Γ UU'ᵀ``, the part of ``UᵀΓU`` that lies within the new directions.

    Args:
        core: ``(L, 2, r, r)``, Γ.
        basis: ``(L, 2, r, d)``, U.
        new_basis: ``(L, 2, r', d)``, U'.
    """
    turn = new_basis @ basis.swapaxes(2, 3)  # (L, 2, r', r)
    moved: Array32 = turn @ core @ turn.swapaxes(2, 3)
    return moved
