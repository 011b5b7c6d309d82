"""Labelled text: reading it, and splitting it in ways that can be repeated. Knows no model and no torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import seeds
from ifedicl.errors import DataError
from ifedicl.task import Task

_SHOWN_FAULTS, _SHOWN_COLUMN = 5, 20
_COLUMN_REMEDY = "Name the columns: text_column and label_column under [data], or --text-column and --label-column"
"""Most characters of a label that are shown: with the columns mixed up, it would be a text."""
_HUB_PREFIX = "hub:"


@dataclass(frozen=True)
class Example:
    """One labelled text. ``label`` is one of the task's label names."""

    text: str
    label: str

    @property
    def key(self) -> str:
        """Hex SHA-256 of text and label: names the example without showing it. It stays with its owner."""
        return hashlib.sha256(f"{self.label}\x1f{self.text}".encode()).hexdigest()


class Role(StrEnum):
    """What an example is used for at its client."""

    TRAIN = "train"
    SELECTION = "selection"
    GATE = "gate"


def split_roles(examples: Sequence[Example], *, selection: float, gate: float, seed: int) -> dict[Role, tuple[Example, ...]]:
    """Divide a client's examples by a seeded hash of each example.

    The hash decides alone, so an example keeps its role when others are added later.

    Args:
        examples: the client's examples, in file order.
        selection: fraction that chooses the round, never trained on.
        gate: fraction that decides whether the adapter may replace zero-shot, used for nothing else.
        seed: of the run.
    """
    roles: dict[Role, list[Example]] = {role: [] for role in Role}
    for example in examples:
        draw = seeds.unit(seed, "role", example.key)
        if draw < selection:
            roles[Role.SELECTION].append(example)
        elif draw < selection + gate:
            roles[Role.GATE].append(example)
        else:
            roles[Role.TRAIN].append(example)
    return {role: tuple(rows) for role, rows in roles.items()}


def dirichlet_split(
    examples: Sequence[Example], *, clients: int, alpha: float, seed: int, at_least: int = 2
) -> tuple[tuple[Example, ...], ...]:
    """Deal a pool of examples to simulated clients, class by class, by shares drawn from Dirichlet(``alpha``).

    Small ``alpha`` gives each client few classes, large ``alpha`` gives all the same mix. The draw is repeated until every
    client holds ``at_least`` examples.

    Raises:
        DataError: the pool is too small for that many clients.
    """
    if len(examples) < clients * at_least:
        raise DataError(
            f"{len(examples)} examples cannot be dealt to {clients} clients with at least {at_least} each; "
            "use fewer clients or more examples"
        )
    by_label: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        by_label.setdefault(example.label, []).append(position)
    for attempt in range(10_000):
        draw = seeds.generator(seed, "dirichlet", attempt)
        hands: list[list[int]] = [[] for _ in range(clients)]
        for label in sorted(by_label):
            positions = draw.permutation(by_label[label])
            bounds = np.cumsum(draw.dirichlet(np.full(clients, alpha)))[:-1] * len(positions)
            for hand, part in zip(hands, np.split(positions, bounds.round().astype(int)), strict=True):
                hand.extend(int(position) for position in part)
        if min(map(len, hands)) >= at_least:
            return tuple(tuple(examples[position] for position in sorted(hand)) for hand in hands)
    raise DataError(
        f"no Dirichlet({alpha:g}) split of {len(examples)} examples gave each of {clients} clients {at_least} examples "
        "in 10,000 draws; use fewer clients, more examples or a larger alpha"
    )


def draw_pool(examples: Sequence[Example], size: int, seed: int) -> tuple[Example, ...]:
    """``size`` examples drawn without replacement, in file order; all of them where there are no more."""
    if size >= len(examples):
        return tuple(examples)
    chosen = seeds.generator(seed, "pool").choice(len(examples), size=size, replace=False)
    return tuple(examples[int(position)] for position in sorted(chosen))


def read_examples(source: str | Path, task: Task, *, text: str = "text", label: str = "label") -> tuple[Example, ...]:
    """Read labelled text and check every row against the task.

    Args:
        source: a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` file, or ``hub:NAME/SPLIT`` for a data set of the model hub.
        task: the labels that may occur.
        text: the column that holds the text.
        label: the column that holds the label's name.

    Raises:
        DataError: the file is absent, torn or empty, a column is missing, a text is empty, or a label is not of the task.
            The first few faulty rows are named by line; their text is not shown.
    """
    return _read(source, task, text, label)


def read_labelled(source: str | Path, *, text: str = "text", label: str = "label") -> tuple[Example, ...]:
    """:func:`read_examples` for an owner that is told the task later: any label may occur.

    Raises:
        DataError: likewise.
    """
    return _read(source, None, text, label)


def _read(source: str | Path, task: Task | None, text: str, label: str) -> tuple[Example, ...]:
    examples: list[Example] = []
    faults: list[str] = []
    for line, row in rows_of(source):
        fault = _fault_of(row, task, text, label)
        if fault is None:
            examples.append(Example(str(row[text]), str(row[label])))
        else:
            faults.append(f"line {line}: {fault}")
    if faults:
        shown = "\n  ".join(faults[:_SHOWN_FAULTS])
        more = f"\n  and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise DataError(f"{source}: {len(faults)} faulty rows\n  {shown}{more}")
    if not examples:
        raise DataError(f"{source}: no rows; give a file with at least one labelled text")
    return tuple(examples)


def read_texts(source: str | Path, *, text: str = "text") -> tuple[str, ...]:
    """Read texts without labels: a ``.txt`` file holds one a line, other formats as in :func:`read_examples`.

    Raises:
        DataError: the file is absent, torn or empty, or the column is missing.
    """
    if Path(source).suffix.lower() == ".txt":
        texts = tuple(line for line in _decoded(Path(source)).split("\n") if line.strip())
    else:
        texts = tuple(_text_of(source, line, row, text) for line, row in rows_of(source))
    if not texts:
        raise DataError(f"{source}: no texts in it; give a file with at least one")
    return texts


def columns_of(row: Mapping[str, Any]) -> list[str]:
    """Names of the columns, cut short: in a file without a header line they would be a text."""
    return [str(name)[:_SHOWN_COLUMN] for name in row]


def _text_of(source: str | Path, line: int, row: Mapping[str, Any], column: str) -> str:
    if row.get(column) is None:
        raise DataError(f"{source}, line {line}: no column {column!r}; it has {', '.join(map(repr, columns_of(row)))}")
    return str(row[column])


def _fault_of(row: Mapping[str, Any], task: Task | None, text: str, label: str) -> str | None:
    for column in (text, label):
        if column in row and row[column] is None:
            return f"column {column!r} is empty; fill it or remove the row"
        if column not in row:
            return f"no column {column!r}; it has {', '.join(map(repr, columns_of(row)))}. {_COLUMN_REMEDY}"
    if not str(row[text]).strip():
        return "the text is empty; remove the row or fill it"
    if holds_half_a_character(str(row[text])):
        return "the text holds half a character (a lone surrogate, as of a cut emoji); repair or remove the row"
    if task is not None and str(row[label]) not in task.labels:
        return f"{task.unknown(str(row[label]))}. Correct the row, or add the label to the task"
    return None


def holds_half_a_character(text: str) -> bool:
    """Whether there is a lone surrogate in it: of a cut emoji, or of bytes that were no UTF-8. No tokenizer takes one."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def rows_of(source: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, row) pairs of any supported source, as they stand there.

    Raises:
        DataError: the source is absent, torn, or of a kind that is not read.
    """
    if str(source).startswith(_HUB_PREFIX):
        yield from enumerate(_hub_rows(str(source).removeprefix(_HUB_PREFIX)), start=1)
        return
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files ending in {path.suffix!r} are not read; allowed: {', '.join(sorted(_READERS))}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path (in a config it is taken from the config's folder)")
    yield from reader(path)


def _decoded(path: Path) -> str:
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
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}); the file may be torn. "
                "Every line must be one object"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a {type(row).__name__}; every line must be one object")
        yield number, row


def _delimited(delimiter: str) -> Callable[[Path], Iterable[tuple[int, Mapping[str, Any]]]]:
    def rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
        # A file object splits at newlines only, as in _jsonl_rows.
        reader = csv.DictReader(io.StringIO(_decoded(path), newline=""), delimiter=delimiter, strict=True)
        try:
            if delimiter == "," and any(";" in name for name in reader.fieldnames or ()):
                raise DataError(f"{path}: its cells are separated by ';'; save it with ',' between them, or as .jsonl")
            for row in reader:
                if None in row:  # never shown: what stands in the label's place is a piece of the text
                    raise DataError(
                        f"{path}, line {reader.line_num}: more cells than columns; put quotes around texts that hold "
                        f"{delimiter!r}"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            # The DictReader's own line_num is that of the row before.
            raise DataError(f"{path}, line {reader.reader.line_num}: {error}; the file may be torn") from error

    return rows


def _parquet_rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs one more package: pip install 'ifedicl[parquet]'") from error
    try:
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
