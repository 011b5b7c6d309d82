"""Cells of a row of a data file, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ifedicl.errors import DataError
from ifedicl.rows import SURROGATE, columns_of, has_lone_surrogate, is_text, kind_of

COLUMN_REMEDY = "Name the columns: text_column and label_column under [data], or --text-column and --label-column"


def texts_in(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """The cells of these columns as text; a number is text.

    Raises:
        DataError: a column is missing, empty or no text, in words that follow the number of the row's line.
    """
    for column in columns:
        check_filled(row, column)
        check_text(row[column], column)
    return [str(row[column]) for column in columns]


def check_filled(row: Mapping[str, Any], column: str) -> None:
    """Check that a row has something in this column.

    Raises:
        DataError: as :func:`texts_in`.
    """
    if column not in row:
        raise DataError(f"no column {column!r}; it has {', '.join(map(repr, columns_of(row)))}. {COLUMN_REMEDY}")
    if row[column] is None:
        raise DataError(f"column {column!r} is empty; fill it or remove the row")


def check_text(cell: Any, column: str) -> None:
    """Check that a cell, or an item of it, is text.

    Raises:
        DataError: as :func:`texts_in`.
    """
    if not is_text(cell):
        raise DataError(
            f"column {column!r}: received {kind_of(cell)}; allowed: text, or a number. Write it as text, in quotes, or "
            "remove the row"
        )
    if has_lone_surrogate(str(cell)):
        raise DataError(f"column {column!r}: {SURROGATE}; allowed: valid Unicode. Repair or remove the row")


def text_in(cell: str) -> str:
    """The text of a row.

    Raises:
        DataError: it is blank.
    """
    if not cell.strip():
        raise DataError("the text is empty; remove the row or fill it")
    return cell
