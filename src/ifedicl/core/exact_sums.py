"""Sums that do not depend on the order of their addends."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array64


class OrderlessSum:
    """Adds up arrays by name. Clients may answer in any order; the total has the same bits.

    A second float64 keeps what each float64 addition rounds off (Knuth's two-sum), so the total has twice the digits until it
    is read. It is exact for float32 numbers times counts if no two of them differ by more than a factor of 2^50. The memory is
    that of two addends, however many are added.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Array64] = {}
        self._rests: dict[str, Array64] = {}

    def add(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Add one finite array under each name; every call has the same names and shapes."""
        for name, array in arrays.items():
            addend = np.asarray(array, dtype=np.float64)
            if name not in self._totals:
                self._totals[name], self._rests[name] = np.zeros_like(addend), np.zeros_like(addend)
            before = self._totals[name]
            total = before + addend
            added = total - before
            self._rests[name] += (before - (total - added)) + (addend - added)
            self._totals[name] = total

    @property
    def totals(self) -> dict[str, Array64]:
        """The sums by name, rounded to float64; empty if nothing was added."""
        return {name: total + self._rests[name] for name, total in self._totals.items()}
