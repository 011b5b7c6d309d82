"""The kinds of weight-only quantisation, and the fingerprint of a model with one; without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """How a weight ``(n, m)`` is stored: whole numbers, and a factor for each row or each ``group`` of its columns."""

    bits: int
    group: int | None

    def nbytes(self, rows: int, columns: int, itemsize: int) -> int:
        """Bytes of a weight whose factors take ``itemsize`` bytes each."""
        return rows * columns * self.bits // 8 + rows * (columns // self.group if self.group else 1) * itemsize


KINDS: Mapping[str, Kind] = {"int8": Kind(8, None), "int4": Kind(4, 32)}
"""By the name in ``model.quantisation``."""


def fingerprint_with(fingerprint: str, quantisation: str | None) -> str:
    """The fingerprint of a model whose stored weights have the given one: vectors of other numbers are another model's."""
    if quantisation is None:
        return fingerprint
    kind = KINDS[quantisation]
    return hashlib.sha256(f"{fingerprint}\x1fquantised\x1f{kind.bits}\x1f{kind.group}".encode()).hexdigest()
