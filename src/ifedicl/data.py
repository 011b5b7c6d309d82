"""Labelled text: reads it from rows and splits it in repeatable ways. It knows no model and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from ifedicl import seeds
from ifedicl.errors import DataError
from ifedicl.kinds import USUAL
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.classify import Example, Task
from ifedicl.kinds.examples import AnyExample
from ifedicl.kinds.row_cells import COLUMN_REMEDY, check_text
from ifedicl.rows import columns_of, decoded, rows_of

E = TypeVar("E", bound=AnyExample)

_SHOWN_FAULTS = 5
_SPLITS_TRIED = 10_000


class Role(StrEnum):
    """What an example is used for at its client."""

    TRAIN = "train"
    SELECTION = "selection"
    GATE = "gate"


def split_roles(examples: Sequence[E], *, selection: float, gate: float, seed: int) -> dict[Role, tuple[E, ...]]:
    """Divide a client's examples by a seeded hash of each example.

    The hash alone decides, so an example keeps its role when others are added later.

    Args:
        examples: the client's examples, in file order.
        selection: fraction that chooses the round and is never trained on.
        gate: fraction that decides whether the adapter may replace zero-shot, used for nothing else.
        seed: the run's seed.
    """
    roles: dict[Role, list[E]] = {role: [] for role in Role}
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
    examples: Sequence[E], *, clients: int, alpha: float, seed: int, at_least: int = 2
) -> tuple[tuple[E, ...], ...]:
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
    by_stratum: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        by_stratum.setdefault(example.stratum, []).append(position)
    for attempt in range(_SPLITS_TRIED):
        draw = seeds.generator(seed, "dirichlet", attempt)
        hands: list[list[int]] = [[] for _ in range(clients)]
        for stratum in sorted(by_stratum):
            positions = draw.permutation(by_stratum[stratum])
            bounds = np.cumsum(draw.dirichlet(np.full(clients, alpha)))[:-1] * len(positions)
            for hand, part in zip(hands, np.split(positions, bounds.round().astype(int)), strict=True):
                hand.extend(int(position) for position in part)
        if min(map(len, hands)) >= at_least:
            return tuple(tuple(examples[position] for position in sorted(hand)) for hand in hands)
    raise DataError(
        f"alpha: no Dirichlet({alpha:g}) split of {len(examples)} examples gave each of {clients} clients {at_least} examples "
        f"in {_SPLITS_TRIED:,} draws. Use fewer clients, more examples or a larger alpha"
    )


def draw_pool(examples: Sequence[E], size: int, seed: int) -> tuple[E, ...]:
    """``size`` examples drawn without replacement, in file order; all examples if there are no more."""
    if size >= len(examples):
        return tuple(examples)
    chosen = seeds.generator(seed, "pool").choice(len(examples), size=size, replace=False)
    return tuple(examples[int(position)] for position in sorted(chosen))


@overload
def read_examples(source: str | Path, task: Task, *, text: str = "text", label: str = "label") -> tuple[Example, ...]: ...
@overload
def read_examples(source: str | Path, task: AnyTask, *, text: str = "text", label: str = "label") -> tuple[AnyExample, ...]: ...
def read_examples(source: str | Path, task: AnyTask, *, text: str = "text", label: str = "label") -> tuple[AnyExample, ...]:
    """Read texts with their answers and check every row against the task.

    Args:
        source: a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` file, a folder of parts of one set, a folder that
            ``save_to_disk`` of ``datasets`` wrote, or ``hub:NAME/SPLIT`` for a data set of the model hub.
        task: its kind makes the examples, of class :class:`ifedicl.Example` for labels; its answers may occur.
        text: the column that holds the text.
        label: the column that holds the label's name, or another kind's answer.

    Raises:
        DataError: the file is absent, torn or empty, a column is missing, a text is empty, or a label is not of the task.
            The first few faulty rows are named by line; their text is not shown.
    """
    return _read(source, type(task), task.checked, text, label)


def read_labelled(
    source: str | Path, *, kind: type[AnyTask] = USUAL, text: str = "text", label: str = "label"
) -> tuple[AnyExample, ...]:
    """:func:`read_examples` for an owner that learns the task later: any answer that a kind of task can have may occur.

    Raises:
        DataError: as :func:`read_examples`, except for unknown labels.
    """
    return _read(source, kind, lambda example: example, text, label)


def _read(
    source: str | Path, kind: type[AnyTask], checked: Callable[[AnyExample], AnyExample], text: str, label: str
) -> tuple[AnyExample, ...]:
    examples: list[AnyExample] = []
    faults: list[str] = []
    for line, row in rows_of(source, kind.reads(text, label)):
        if not examples and not faults and (absent := [name for name in (text, label) if name not in row]):
            has = ", ".join(map(repr, columns_of(row)))
            raise DataError(f"{source}: no column {' and no '.join(map(repr, absent))}; it has {has}. {COLUMN_REMEDY}")
        try:
            examples.append(checked(kind.example_of(row, text, label)))
        except DataError as fault:
            faults.append(f"line {line}: {fault}")
    if faults:
        shown = "\n  ".join(faults[:_SHOWN_FAULTS])
        more = f"\n  and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise DataError(f"{source}: {len(faults)} faulty rows\n  {shown}{more}")
    if not examples:
        raise DataError(f"{source}: received no rows; allowed: at least one labelled text")
    return tuple(examples)


def read_questions(source: str | Path, task: AnyTask, *, text: str = "text") -> tuple[AnyExample, ...]:
    """Read texts without answers, with what else the task's kind asks with them; a ``.txt`` file holds one text in each line.

    Raises:
        DataError: the file is absent, torn or empty, or the first row that cannot be asked, by its line.
    """
    if Path(source).suffix.lower() == ".txt":
        return tuple(task.question_of({text: line}, text) for line in read_texts(source))
    questions = []
    for line, row in rows_of(source, task.reads(text, text)):
        try:
            questions.append(task.question_of(row, text))
        except DataError as fault:
            raise DataError(f"{source}, line {line}: {fault}") from None
    if not questions:
        raise DataError(f"{source}: received no texts; allowed: at least one")
    return tuple(questions)


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
    try:
        check_text(row[column], column)
    except DataError as fault:
        raise DataError(f"{source}, line {line}: {fault}") from None
    return str(row[column])
