"""Rows of Arrow tables: Parquet files, and the folders that ``datasets`` saves. Columns that nobody asks for are not read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ifedicl.errors import DataError

SHOWN_COLUMN = 20
"""Most characters of a column's name in a message: without a header line the name is a text."""
STATE = "state.json"
"""In a folder that ``Dataset.save_to_disk`` wrote."""
SPLITS = "dataset_dict.json"
"""In a folder that ``DatasetDict.save_to_disk`` wrote: one folder for each split."""
_ALLOWED_CELLS = "allowed: text, or a number"


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuse two columns of one name, since only the last is read. Commas at a line's end make columns without a name.

    Raises:
        DataError: a name occurs twice.
    """
    twice = [name[:SHOWN_COLUMN] for name, count in Counter(columns).items() if count > 1 and name]
    if twice:
        raise DataError(
            f"{path}, line 1: received the column {', '.join(map(repr, twice))} more than once; allowed: a distinct name for "
            "each column. Rename or remove one"
        )


def parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterable[Mapping[str, Any]]:
    """The rows of a Parquet file.

    Args:
        path: the file.
        columns: the columns to read; None: all. The others are None in every row, so that a message can name them.

    Raises:
        DataError: the file is torn, or a column that is read holds cells that Python has no value for.
    """
    _require_arrow(path)
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_columns(path, schema.names)
            table = file.read(columns=_wanted(schema.names, columns))
    except DataError:
        raise
    except Exception as error:  # pyarrow raises types of its own, of OSError and of ValueError
        raise DataError(f"{path}: not a whole Parquet file ({error}); write or download it again") from error
    return _rows(path, table, schema, columns)


def saved_rows(folder: Path, columns: Sequence[str] | None) -> Iterable[Mapping[str, Any]]:
    """The rows of a folder that ``Dataset.save_to_disk`` wrote; arguments and errors are those of :func:`parquet_rows`."""
    _require_arrow(folder)
    import pyarrow as pa

    state = _json(folder / STATE)
    names = [str(item.get("filename")) for item in state.get("_data_files") or [] if isinstance(item, dict)]
    if not names or state.get("_indices_data_files"):
        raise DataError(
            f"{folder}: received a saved data set whose {STATE} names no data files, or picks rows of them; allowed: all rows "
            "of its files. Load it with datasets, and write it again with to_parquet()"
        )
    tables = []
    for name in names:
        try:
            with pa.memory_map(str(folder / Path(name).name)) as source:
                tables.append(pa.ipc.open_stream(source).read_all())
        except Exception as error:  # as for Parquet
            raise DataError(f"{folder / name}: not a whole Arrow file ({error}); save or download it again") from error
    schema = tables[0].schema
    check_columns(folder, schema.names)
    wanted = _wanted(schema.names, columns)
    try:
        table = pa.concat_tables([table.select(wanted) for table in tables])
    except Exception as error:
        raise DataError(f"{folder}: its files have different columns ({error}); save it again") from error
    return _rows(folder, table, schema, columns)


def _wanted(names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    return [name for name in names if columns is None or name in columns]


def _rows(path: Path, table: Any, schema: Any, columns: Sequence[str] | None) -> Iterable[Mapping[str, Any]]:
    """The rows of ``table``, with the names of class labels, and None for columns of ``schema`` that were not read."""
    labels = class_labels(schema.metadata)
    empty = dict.fromkeys(schema.names)
    cells: dict[str, list[Any]] = {}
    for name in _wanted(schema.names, columns):
        try:
            values = table.column(name).to_pylist()
        except Exception as error:  # years after 9999, nanoseconds, time zones that are not installed
            if columns is None:
                continue
            raise DataError(
                f"{path}: column {name[:SHOWN_COLUMN]!r}: received cells of the type {table.schema.field(name).type}, which "
                f"cannot be read ({error}); {_ALLOWED_CELLS}. Write them as text"
            ) from error
        cells[name] = [named(value, labels[name]) for value in values] if name in labels else values
    return (empty | {name: values[row] for name, values in cells.items()} for row in range(table.num_rows))


def class_labels(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """For each column of class numbers the names of the classes, from what ``datasets`` writes into a schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {name: [str(label) for label in names] for name, names in found.items() if isinstance(names, list)}


def named(value: object, names: Sequence[str]) -> object:
    """The name of a class; None for -1, which means that a row has no label."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value == -1:
        return None
    return names[value] if 0 <= value < len(names) else value


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); save the data set again") from error
    return value if isinstance(value, dict) else {}


def _require_arrow(path: Path) -> None:
    if find_spec("pyarrow") is None:
        raise DataError(f"{path}: Parquet files need another package: pip install 'ifedicl[parquet]'")
