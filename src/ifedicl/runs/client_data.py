"""The labelled text of a run: each client's examples, and the test examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from ifedicl.data import Example, dirichlet_split, draw_pool, read_examples, read_texts
from ifedicl.errors import DataError, InputError
from ifedicl.settings import RunSettings, SplitSettings
from ifedicl.settings.config import CLIENT_NAME, is_client_name, shortened
from ifedicl.task import Task


@dataclass(frozen=True)
class RunData:
    """The labelled text of a run.

    Attributes:
        clients: each client's examples.
        test: labelled text that is read once at the end; empty if the config names no file.
    """

    clients: Mapping[str, tuple[Example, ...]]
    test: tuple[Example, ...]

    @classmethod
    def read(cls, settings: RunSettings) -> Self:
        """Read the files that a config names. No model and no torch is needed, so a wrong path is found at once.

        Raises:
            DataError: a file or its rows are wrong, or all clients together hold one class only.
        """
        data = settings.data
        test = () if data.test is None else _read(settings, data.test)
        if data.public is not None:
            read_texts(data.public, text=data.text_column)  # a check: only private mode needs them, and reads them
        return cls(client_examples(settings), test)


def client_examples(settings: RunSettings) -> dict[str, tuple[Example, ...]]:
    """Each client's examples, read from its file or split from one file.

    Raises:
        DataError: a file or its rows are wrong, or all clients together hold one class only.
    """
    data = settings.data
    if data.clients is not None:
        clients = {name: _read(settings, source) for name, source in data.clients.items()}
    else:
        assert data.train is not None
        clients = simulated_clients(_read(settings, data.train), data.split, settings.seed)
    check_classes(settings.task, clients)
    return clients


def simulated_clients(examples: Sequence[Example], split: SplitSettings, seed: int) -> dict[str, tuple[Example, ...]]:
    """Draw a pool of examples and split it among simulated clients.

    Raises:
        DataError: the pool is too small for that many clients.
    """
    pool = draw_pool(examples, split.pool or len(examples), seed)
    parts = dirichlet_split(pool, clients=split.clients, alpha=split.alpha, seed=seed)
    return {f"client-{number:02d}": part for number, part in enumerate(parts, start=1)}


def check_classes(task: Task, clients: Mapping[str, Sequence[Example]]) -> None:
    """Check the labels of all clients together.

    Raises:
        DataError: there is no example, only one class, or a label that the task does not have.
    """
    stated = {example.label for examples in clients.values() for example in examples}
    labels = {task.label_of(label) for label in stated}
    if unknown := [label for label in stated if task.label_of(label) is None]:
        raise DataError(f"{len(unknown)} labels are not in the task; allowed: {', '.join(task.labels)}")
    if not labels:
        raise DataError("no client has an example; at least one client with examples of two labels is needed")
    if len(labels) < 2:
        raise DataError(
            f"all examples have the label {next(iter(labels))!r}; at least two of {', '.join(task.labels)} are needed. "
            "Add examples of another label"
        )


def check_names(clients: Iterable[str]) -> None:
    """Check that each client has a name that can be seen in logs and reports.

    Raises:
        InputError: a name is not text, is blank or too long, or holds a character that cannot be printed.
    """
    for name in clients:
        if not is_client_name(name):
            raise InputError(f"clients: received the name {shortened(str(name))!r}; allowed: {CLIENT_NAME}. Rename it")


def _read(settings: RunSettings, source: str) -> tuple[Example, ...]:
    data = settings.data
    return read_examples(source, settings.task, text=data.text_column, label=data.label_column)
