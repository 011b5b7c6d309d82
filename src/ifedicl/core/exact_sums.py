"""Sums that do not depend on the order of what is added."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array64


class OrderlessSum:
    """Arrays by name, added up one by one; clients may answer in any order and the total has the same bits.

    What a float64 addition rounds off is kept in a second float64 (Knuth's two-sum), so the total carries twice the digits
    until it is read: exact for float32 numbers times counts as long as no two of them lie more than 2^50 apart, and beyond
    the last bit that is read for others of like size. Two copies of one addend are all the memory that it takes, however many
    are added.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Array64] = {}
        self._rests: dict[str, Array64] = {}

    def add(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Add one array under each name.

        Args:
            arrays: finite; of the same names and shapes in every call.
        """
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
        """By name, rounded to float64; empty where nothing was added."""
        return {name: total + self._rests[name] for name, total in self._totals.items()}
