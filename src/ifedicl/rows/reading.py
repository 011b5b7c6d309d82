"""Reads rows of JSONL, CSV, TSV and Parquet files, of folders of them, and of data sets on the hub. It knows no task."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ifedicl.errors import DataError
from ifedicl.rows import arrow
from ifedicl.rows.arrow import SHOWN_COLUMN, check_columns

Numbered: TypeAlias = Iterator[tuple[int | str, Mapping[str, Any]]]
"""Where a row is, for messages (its line, or its line "of" a file of a folder), and the row."""
_Reader: TypeAlias = Callable[[Path, Sequence[str] | None], Iterable[tuple[int, Mapping[str, Any]]]]
HUB_PREFIX = "hub:"
"""The beginning of a source that is a hub id, not a path."""
SURROGATE = "received an unpaired surrogate (for instance of a cut emoji)"
"""What is said of text with :func:`has_lone_surrogate`."""
_NOT_TEXT: Mapping[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("a gzip archive", "Unpack it"),
    b"PK\x03\x04": ("a zip archive, as .xlsx files are", "Unpack it, or save the table as CSV"),
    b"PAR1": ("a Parquet file", "Let its name end in .parquet"),
    codecs.BOM_UTF16_LE: ("UTF-16", "Save it as UTF-8"),
    codecs.BOM_UTF16_BE: ("UTF-16", "Save it as UTF-8"),
}
"""First bytes of files of other kinds: what they are, and what to do."""
_KINDS: Mapping[type, str] = {bool: "true or false", list: "a list", bytes: "bytes"}


class _Object(dict[str, Any]):
    """A JSON object, with the keys that stand in it more than once."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice: dict[str, Any] = {}
        if len(self) < len(pairs):
            self.twice = {name: None for name, count in Counter(name for name, _ in pairs).items() if count > 1}


def is_text(cell: object) -> bool:
    """Whether a cell is text or a finite number, which is read as its digits."""
    return (isinstance(cell, str | int) and not isinstance(cell, bool)) or (isinstance(cell, float) and math.isfinite(cell))


def kind_of(cell: object) -> str:
    """The kind of a cell, without its content."""
    if isinstance(cell, float):
        return f"{cell}, which is not a number"
    return "an object" if isinstance(cell, dict) else _KINDS.get(type(cell), f"a {type(cell).__name__}")


def columns_of(row: Mapping[str, Any]) -> list[str]:
    """The names of the columns, shortened."""
    return [str(name)[:SHOWN_COLUMN] for name in row]


def has_lone_surrogate(text: str) -> bool:
    """Whether ``text`` holds an unpaired surrogate: of a cut emoji, or of bytes that are not UTF-8. Tokenizers refuse it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def rows_of(source: str | Path, columns: Sequence[str] | None = None) -> Numbered:
    """(line, row) pairs of any supported source.

    Args:
        source: a file, a folder of parts of one set, a folder written by ``save_to_disk``, or ``hub:NAME/SPLIT``.
        columns: those that the caller needs; None: all. The others may be None in every row: a Parquet file, for instance, may
            hold columns that cannot be read.

    Raises:
        DataError: the source is absent, torn, or of an unknown kind.
    """
    if str(source).startswith(HUB_PREFIX):
        yield from enumerate(_hub_rows(str(source).removeprefix(HUB_PREFIX), columns), start=1)
        return
    path = Path(source)
    if path.is_dir():
        yield from _folder_rows(path, columns)
        return
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: received a file ending in {path.suffix!r}; allowed: {', '.join(sorted(_READERS))}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Check the path (in a config it is relative to the config's folder)")
    yield from reader(path, columns)


def holds_rows(folder: Path) -> bool:
    """Whether a folder looks like a data set: parts of one, or one that ``save_to_disk`` wrote. It may still be unreadable."""
    names = [file.name for file in folder.iterdir() if not file.name.startswith((".", "_"))]
    return bool({arrow.STATE, arrow.SPLITS} & set(names)) or any(Path(name).suffix.lower() in _READERS for name in names)


def _folder_rows(folder: Path, columns: Sequence[str] | None) -> Numbered:
    if (folder / arrow.STATE).is_file():
        yield from enumerate(arrow.saved_rows(folder, columns), start=1)
        return
    if (folder / arrow.SPLITS).is_file():
        splits = sorted(part.name for part in folder.iterdir() if (part / arrow.STATE).is_file())
        raise DataError(
            f"{folder}: received a folder of saved splits ({', '.join(splits)}); allowed: one of them. Name its folder, for "
            f"instance {folder / (splits[0] if splits else 'train')}"
        )
    for file in parts_of(folder):
        for line, row in _READERS[file.suffix.lower()](file, columns):
            yield f"{line} of {file.name}", row


def parts_of(folder: Path) -> list[Path]:
    """The data files of a folder, in order of their numbers.

    Raises:
        DataError: there is none, they are not parts of one set, or one of the parts is missing.
    """
    found = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith((".", "_"))]
    parts = sorted((file for file in found if file.suffix.lower() in _READERS), key=lambda file: _natural(file.name))
    kinds = ", ".join(sorted(_READERS))
    if not parts:
        inner = sorted(place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
        content = f"folders only ({', '.join(inner[:3])})" if inner and not found else "no data files"
        raise DataError(
            f"{folder}: received a folder with {content}; allowed: files ending in {kinds}. Name the file or its folder"
        )
    if len({re.sub(r"\d+", "#", file.name.lower()) for file in parts}) > 1:
        names = ", ".join(file.name for file in parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
        raise DataError(
            f"{folder}: received a folder with several data files ({names}); allowed: parts of one set, whose names differ in "
            "their numbers only. Name one file, or move the parts to a folder of their own"
        )
    told = re.search(r"-of-(\d+)", parts[0].name)
    if told is not None and int(told[1]) != len(parts):
        raise DataError(
            f"{folder}: received {len(parts)} parts; allowed: all {int(told[1])} that {parts[0].name} tells of. Download "
            "the others"
        )
    return parts


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``part-10`` behind ``part-9``."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name) if piece]


def decoded(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: the file is absent, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: received a folder; allowed: a file. Name a file in it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions") from error
    except UnicodeDecodeError as error:
        kind = next((kind for first, kind in _NOT_TEXT.items() if error.object.startswith(first)), None)
        if kind is not None:
            raise DataError(f"{path}: received {kind[0]}; allowed: text in UTF-8. {kind[1]}") from error
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); convert it, or check that it is whole") from error


def _jsonl_rows(path: Path, _columns: Sequence[str] | None) -> Iterable[tuple[int, Mapping[str, Any]]]:
    # Split at newlines only: str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_Object)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}); the file may be torn, or one value "
                "over several lines. Every line must be one object"
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
        if isinstance(row, _Object) and row.twice:
            raise DataError(
                f"{path}, line {number}: received the key {', '.join(map(repr, columns_of(row.twice)))} more than once; "
                "allowed: a distinct name for each key. Rename or remove one"
            )
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a {type(row).__name__}; every line must be one object")
        yield number, row


def _delimited(delimiter: str) -> _Reader:
    def rows(path: Path, columns: Sequence[str] | None) -> Iterable[tuple[int, Mapping[str, Any]]]:
        # A file object splits at newlines only, as in _jsonl_rows.
        reader = csv.DictReader(io.StringIO(decoded(path), newline=""), delimiter=delimiter, strict=True)
        try:
            while reader.fieldnames is not None and not any(map(str.strip, reader.fieldnames)):
                reader.fieldnames = None  # a line without names: the next one is the header
            _check_delimiter(path, delimiter, reader.fieldnames or (), columns or ())
            check_columns(path, reader.fieldnames or ())
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


def _check_delimiter(path: Path, delimiter: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a header of one column that is several columns with another separator; ``wanted`` columns are fine."""
    if len(names) != 1 or names[0] in wanted:
        return
    other = max((other for other in ",;\t|" if other != delimiter), key=names[0].count)
    if other in names[0]:
        raise DataError(
            f"{path}: received cells that are separated by {other!r}; allowed in a {path.suffix} file: {delimiter!r}. Save it "
            f"with {delimiter!r} between them, or as .jsonl"
        )


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterable[tuple[int, Mapping[str, Any]]]:
    return enumerate(arrow.parquet_rows(path, columns), start=1)


def _hub_rows(name: str, columns: Sequence[str] | None) -> Iterable[Mapping[str, Any]]:
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
    labels = {column: feature.names for column, feature in table.features.items() if getattr(feature, "names", None)}
    empty = dict.fromkeys(table.features)
    if columns is not None:  # pictures and sounds would be decoded
        table = table.select_columns([column for column in table.features if column in columns])
    for row in table:
        yield empty | {key: arrow.named(value, labels[key]) if key in labels else value for key, value in row.items()}


_READERS: Mapping[str, _Reader] = {
    ".jsonl": _jsonl_rows,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": _parquet_rows,
}
DATA_ENDINGS = tuple(_READERS)
"""The endings of data files."""
