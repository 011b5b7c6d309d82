"""Rows of files, folders and data sets on the hub, without knowledge of a task."""

from __future__ import annotations

from ifedicl.rows.reading import (
    DATA_ENDINGS,
    HUB_PREFIX,
    SURROGATE,
    columns_of,
    decoded,
    has_lone_surrogate,
    holds_rows,
    is_text,
    kind_of,
    rows_of,
)

__all__ = [
    "DATA_ENDINGS",
    "HUB_PREFIX",
    "SURROGATE",
    "columns_of",
    "decoded",
    "has_lone_surrogate",
    "holds_rows",
    "is_text",
    "kind_of",
    "rows_of",
]
