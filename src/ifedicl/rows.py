"""Rows of files, as they stand there: JSONL, CSV, TSV, Parquet, and data sets of the model hub. Knows no task."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ifedicl.errors import DataError

_SHOWN_COLUMN = 20
"""Most characters of a column's name that are shown: in a file without a header line it would be a text."""
HUB_PREFIX = "hub:"
"""A data set's source that begins so is an id of the hub, not a path."""


def is_text(cell: object) -> bool:
    """Whether a cell can be taken as text: text, or a number, which is read by its digits."""
    return isinstance(cell, str) or (isinstance(cell, int) and not isinstance(cell, bool)) or _is_finite(cell)


def described(cell: object) -> str:
    """What a cell is, without what stands in it."""
    if isinstance(cell, float):
        return f"{cell}, which is no number"
    return _KINDS.get(type(cell), f"a {type(cell).__name__}")


_KINDS: Mapping[type, str] = {bool: "true or false", list: "a list", dict: "an object", bytes: "bytes"}


def _is_finite(cell: object) -> bool:
    return isinstance(cell, float) and math.isfinite(cell)


def columns_of(row: Mapping[str, Any]) -> list[str]:
    """Names of the columns, cut short."""
    return [str(name)[:_SHOWN_COLUMN] for name in row]


def has_lone_surrogate(text: str) -> bool:
    """Whether there is a lone surrogate in it: of a cut emoji, or of bytes that were no UTF-8. No tokenizer takes one."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def rows_of(source: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, row) pairs of any supported source, as they stand there.

    Raises:
        DataError: the source is absent, torn, or of a kind that is not read.
    """
    if str(source).startswith(HUB_PREFIX):
        yield from enumerate(_hub_rows(str(source).removeprefix(HUB_PREFIX)), start=1)
        return
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files ending in {path.suffix!r} are not read; allowed: {', '.join(sorted(_READERS))}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path (in a config it is taken from the config's folder)")
    yield from reader(path)


def decoded(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it is absent, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); convert it, or check that it is whole") from error


def _jsonl_rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    # Split at newlines only: str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}); the file may be torn. "
                "Every line must be one object"
            ) from error
        except RecursionError as error:
            raise DataError(
                f"{path}, line {number}: received lists or objects nested too deep to be read; allowed: one object of texts "
                "and numbers. Repair or remove the line"
            ) from error
        except ValueError as error:  # Python reads no number of thousands of digits
            raise DataError(
                f"{path}, line {number}: received a number of thousands of digits; allowed: text, or a shorter number. "
                "Write it as text, in quotes"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a {type(row).__name__}; every line must be one object")
        yield number, row


def _delimited(delimiter: str) -> Callable[[Path], Iterable[tuple[int, Mapping[str, Any]]]]:
    def rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
        # A file object splits at newlines only, as in _jsonl_rows.
        reader = csv.DictReader(io.StringIO(decoded(path), newline=""), delimiter=delimiter, strict=True)
        try:
            if delimiter == "," and any(";" in name for name in reader.fieldnames or ()):
                raise DataError(f"{path}: its cells are separated by ';'; save it with ',' between them, or as .jsonl")
            _check_columns(path, reader.fieldnames or ())
            for row in reader:
                if None in row:  # never shown: what stands in the label's place is a piece of the text
                    raise DataError(
                        f"{path}, line {reader.line_num}: more cells than columns; put quotes around texts that hold "
                        f"{delimiter!r}"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            # The DictReader's own line_num is that of the row before.
            if "field limit" in str(error):
                raise DataError(
                    f"{path}, line {reader.reader.line_num}: received a cell of more than {csv.field_size_limit()} characters, "
                    "which is the most that is allowed. Close its quotes where they are open, cut the text, or save the file "
                    "as .jsonl"
                ) from error
            raise DataError(f"{path}, line {reader.reader.line_num}: {error}; the file may be torn") from error

    return rows


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuse two of one name, of which only the last would be read; commas at a line's end may make some without a name."""
    twice = columns_of({name: None for name, count in Counter(columns).items() if count > 1 and name})
    if twice:
        raise DataError(
            f"{path}, line 1: received the column {', '.join(map(repr, twice))} more than once; allowed: a name of its own for "
            "each column. Rename or remove one"
        )


def _parquet_rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs one more package: pip install 'ifedicl[parquet]'") from error
    try:
        _check_columns(path, parquet.read_schema(path).names)
        return enumerate(parquet.read_table(path).to_pylist(), start=1)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); write or download it again") from error


def _hub_rows(name: str) -> Iterable[Mapping[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"hub:{name}: reading from the hub needs one more package: pip install 'ifedicl[hub]'") from error
    repository, _, split = name.rpartition("/")
    try:
        table = load_dataset(repository, split=split)
    except Exception as error:
        # The hub client raises a dozen unrelated types; all mean the same to the user.
        raise DataError(
            f"hub:{name}: could not be read ({error}); the form is hub:OWNER/DATASET/SPLIT, and the hub must be reachable"
        ) from error
    names = {column: feature.names for column, feature in table.features.items() if hasattr(feature, "names") and feature.names}
    return ({key: names[key][value] if key in names else value for key, value in row.items()} for row in table)


_READERS: Mapping[str, Callable[[Path], Iterable[tuple[int, Mapping[str, Any]]]]] = {
    ".jsonl": _jsonl_rows,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": _parquet_rows,
}
