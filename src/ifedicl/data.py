"""Labelled text: reads it from rows and splits it in repeatable ways. It knows no model and no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import seeds
from ifedicl.errors import DataError, InputError
from ifedicl.inputs import described
from ifedicl.rows import SURROGATE, columns_of, decoded, has_lone_surrogate, is_text, kind_of, rows_of
from ifedicl.task import Task

_SHOWN_FAULTS = 5
_SPLITS_TRIED = 10_000
COLUMN_REMEDY = "Name the columns: text_column and label_column under [data], or --text-column and --label-column"


@dataclass(frozen=True)
class Example:
    """One labelled text. ``label`` is one of the task's label names.

    Raises:
        InputError: text or label is not a string, or holds an unpaired surrogate, which no tokenizer reads.
    """

    text: str
    label: str

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if not isinstance(value, str):
                raise InputError(f"{field} of an example: received {described(value)}; allowed: a string. Convert it")
            if has_lone_surrogate(value):
                raise InputError(f"{field} of an example: {SURROGATE}; allowed: valid Unicode. Repair it, or leave it out")

    @property
    def key(self) -> str:
        """Hex SHA-256 of text and label: it names the example without its content. It stays with the owner."""
        return hashlib.sha256(f"{self.label}\x1f{self.text}".encode()).hexdigest()


class Role(StrEnum):
    """What an example is used for at its client."""

    TRAIN = "train"
    SELECTION = "selection"
    GATE = "gate"


def split_roles(examples: Sequence[Example], *, selection: float, gate: float, seed: int) -> dict[Role, tuple[Example, ...]]:
    """Divide a client's examples by a seeded hash of each example.

    The hash alone decides, so an example keeps its role when others are added later.

    Args:
        examples: the client's examples, in file order.
        selection: fraction that chooses the round and is never trained on.
        gate: fraction that decides whether the adapter may replace zero-shot, used for nothing else.
        seed: the run's seed.
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
            f"examples: received {len(examples)} for {clients} clients; allowed: at least {at_least} for each. "
            "Use fewer clients or more examples"
        )
    by_label: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        by_label.setdefault(example.label, []).append(position)
    for attempt in range(_SPLITS_TRIED):
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
        f"alpha: no Dirichlet({alpha:g}) split of {len(examples)} examples gave each of {clients} clients {at_least} examples "
        f"in {_SPLITS_TRIED:,} draws. Use fewer clients, more examples or a larger alpha"
    )


def draw_pool(examples: Sequence[Example], size: int, seed: int) -> tuple[Example, ...]:
    """``size`` examples drawn without replacement, in file order; all examples if there are no more."""
    if size >= len(examples):
        return tuple(examples)
    chosen = seeds.generator(seed, "pool").choice(len(examples), size=size, replace=False)
    return tuple(examples[int(position)] for position in sorted(chosen))


def read_examples(source: str | Path, task: Task, *, text: str = "text", label: str = "label") -> tuple[Example, ...]:
    """Read labelled text and check every row against the task.

    Args:
        source: a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` file, a folder of parts of one set, a folder that
            ``save_to_disk`` of ``datasets`` wrote, or ``hub:NAME/SPLIT`` for a data set of the model hub.
        task: the labels that may occur.
        text: the column that holds the text.
        label: the column that holds the label's name.

    Raises:
        DataError: the file is absent, torn or empty, a column is missing, a text is empty, or a label is not of the task.
            The first few faulty rows are named by line; their text is not shown.
    """
    return _read(source, task, text, label)


def read_labelled(source: str | Path, *, text: str = "text", label: str = "label") -> tuple[Example, ...]:
    """:func:`read_examples` for an owner that learns the task later: any label may occur.

    Raises:
        DataError: as :func:`read_examples`, except for unknown labels.
    """
    return _read(source, None, text, label)


def _read(source: str | Path, task: Task | None, text: str, label: str) -> tuple[Example, ...]:
    examples: list[Example] = []
    faults: list[str] = []
    for line, row in rows_of(source, (text, label)):
        if not examples and not faults and (absent := [name for name in (text, label) if name not in row]):
            has = ", ".join(map(repr, columns_of(row)))
            raise DataError(f"{source}: no column {' and no '.join(map(repr, absent))}; it has {has}. {COLUMN_REMEDY}")
        fault = _fault_of(row, task, text, label)
        if fault is None:
            given = str(row[label])
            examples.append(Example(str(row[text]), given if task is None else task.labels[task.index(given)]))
        else:
            faults.append(f"line {line}: {fault}")
    if faults:
        shown = "\n  ".join(faults[:_SHOWN_FAULTS])
        more = f"\n  and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise DataError(f"{source}: {len(faults)} faulty rows\n  {shown}{more}")
    if not examples:
        raise DataError(f"{source}: received no rows; allowed: at least one labelled text")
    return tuple(examples)


def read_texts(source: str | Path, *, text: str = "text") -> tuple[str, ...]:
    """Read texts without labels: a ``.txt`` file holds one in each line; other formats as in :func:`read_examples`.

    Raises:
        DataError: the file is absent, torn or empty, or the column is missing.
    """
    if Path(source).suffix.lower() == ".txt":
        texts = tuple(line for line in decoded(Path(source)).split("\n") if line.strip())
    else:
        texts = tuple(_text_of(source, line, row, text) for line, row in rows_of(source, (text,)))
    if not texts:
        raise DataError(f"{source}: received no texts; allowed: at least one")
    return texts


def _text_of(source: str | Path, line: int | str, row: Mapping[str, Any], column: str) -> str:
    if row.get(column) is None:
        has = ", ".join(map(repr, columns_of(row)))
        raise DataError(f"{source}, line {line}: no column {column!r}; it has {has}. {COLUMN_REMEDY}")
    fault = _no_text(row, column)
    if fault is not None:
        raise DataError(f"{source}, line {line}: {fault}")
    return str(row[column])


def _fault_of(row: Mapping[str, Any], task: Task | None, text: str, label: str) -> str | None:
    for column in (text, label):
        if column in row and row[column] is None:
            return f"column {column!r} is empty; fill it or remove the row"
        if column not in row:
            return f"no column {column!r}; it has {', '.join(map(repr, columns_of(row)))}. {COLUMN_REMEDY}"
        fault = _no_text(row, column)
        if fault is not None:
            return fault
    if not str(row[text]).strip():
        return "the text is empty; remove the row or fill it"
    if task is not None and task.label_of(str(row[label])) is None:
        return f"{task.unknown(str(row[label]))}. Correct the row, or add the label to the task"
    return None


def _no_text(row: Mapping[str, Any], column: str) -> str | None:
    """What is wrong with a cell that is not text; None if it is text."""
    cell = row[column]
    if not is_text(cell):
        return (
            f"column {column!r}: received {kind_of(cell)}; allowed: text, or a number. Write it as text, in quotes, or "
            "remove the row"
        )
    if has_lone_surrogate(str(cell)):
        return f"column {column!r}: {SURROGATE}; allowed: valid Unicode. Repair or remove the row"
    return None
