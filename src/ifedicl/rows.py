"""Reads rows of JSONL, CSV, TSV and Parquet files and of data sets on the hub, without changes. It knows no task."""

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
"""Most characters of a column's name in a message: without a header line the name is a text."""
HUB_PREFIX = "hub:"
"""The beginning of a source that is a hub id, not a path."""
_KINDS: Mapping[type, str] = {bool: "true or false", list: "a list", dict: "an object", bytes: "bytes"}


def is_text(cell: object) -> bool:
    """Whether a cell is text or a finite number, which is read as its digits."""
    return (isinstance(cell, str | int) and not isinstance(cell, bool)) or (isinstance(cell, float) and math.isfinite(cell))


def kind_of(cell: object) -> str:
    """The kind of a cell, without its content."""
    if isinstance(cell, float):
        return f"{cell}, which is not a number"
    return _KINDS.get(type(cell), f"a {type(cell).__name__}")


def columns_of(row: Mapping[str, Any]) -> list[str]:
    """The names of the columns, shortened."""
    return [str(name)[:_SHOWN_COLUMN] for name in row]


def has_lone_surrogate(text: str) -> bool:
    """Whether ``text`` holds an unpaired surrogate: of a cut emoji, or of bytes that are not UTF-8. Tokenizers refuse it."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def rows_of(source: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, row) pairs of any supported source.

    Raises:
        DataError: the source is absent, torn, or of an unknown kind.
    """
    if str(source).startswith(HUB_PREFIX):
        yield from enumerate(_hub_rows(str(source).removeprefix(HUB_PREFIX)), start=1)
        return
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: received a file ending in {path.suffix!r}; allowed: {', '.join(sorted(_READERS))}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Check the path (in a config it is relative to the config's folder)")
    yield from reader(path)


def decoded(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: the file is absent, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions") from error
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
        except ValueError as error:  # Python refuses numbers of thousands of digits
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
                if None in row:  # the cells are not shown: the one in the label's column is a piece of the text
                    raise DataError(
                        f"{path}, line {reader.line_num}: more cells than columns; put quotes around texts that hold "
                        f"{delimiter!r}"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            # The line_num of the DictReader is that of the previous row.
            if "field limit" in str(error):
                raise DataError(
                    f"{path}, line {reader.reader.line_num}: received a cell of more than {csv.field_size_limit()} characters, "
                    "the most that is allowed. Close its quotes, cut the text, or save the file as .jsonl"
                ) from error
            raise DataError(f"{path}, line {reader.reader.line_num}: {error}; the file may be torn") from error

    return rows


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuse two columns of one name, since only the last is read. Commas at a line's end make columns without a name."""
    twice = columns_of({name: None for name, count in Counter(columns).items() if count > 1 and name})
    if twice:
        raise DataError(
            f"{path}, line 1: received the column {', '.join(map(repr, twice))} more than once; allowed: a distinct name for "
            "each column. Rename or remove one"
        )


def _parquet_rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path}: Parquet files need another package: pip install 'ifedicl[parquet]'") from error
    try:
        _check_columns(path, parquet.read_schema(path).names)
        return enumerate(parquet.read_table(path).to_pylist(), start=1)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); write or download it again") from error


def _hub_rows(name: str) -> Iterable[Mapping[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"hub:{name}: data sets of the hub need another package: pip install 'ifedicl[hub]'") from error
    repository, _, split = name.rpartition("/")
    try:
        table = load_dataset(repository, split=split)
    except Exception as error:  # the hub client raises many unrelated types
        raise DataError(
            f"hub:{name}: cannot be read ({error}); allowed: hub:OWNER/DATASET/SPLIT, and the hub must be reachable"
        ) from error
    names = {column: feature.names for column, feature in table.features.items() if hasattr(feature, "names") and feature.names}
    return ({key: names[key][value] if key in names else value for key, value in row.items()} for row in table)


_READERS: Mapping[str, Callable[[Path], Iterable[tuple[int, Mapping[str, Any]]]]] = {
    ".jsonl": _jsonl_rows,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": _parquet_rows,
}
