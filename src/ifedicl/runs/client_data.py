"""The labelled text of a run: each client's examples, and the test examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from ifedicl.data import dirichlet_split, draw_pool, read_examples, read_texts
from ifedicl.errors import InputError
from ifedicl.kinds.examples import AnyExample
from ifedicl.settings import RunSettings, SplitSettings
from ifedicl.settings.config import CLIENT_NAME, is_client_name, shortened


@dataclass(frozen=True)
class RunData:
    """The labelled text of a run.

    Attributes:
        clients: each client's examples.
        test: labelled text that is read once at the end; empty if the config names no file.
    """

    clients: Mapping[str, tuple[AnyExample, ...]]
    test: tuple[AnyExample, ...]

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


def client_examples(settings: RunSettings) -> dict[str, tuple[AnyExample, ...]]:
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
    settings.task.check_all([example for rows in clients.values() for example in rows])
    return clients


def simulated_clients(examples: Sequence[AnyExample], split: SplitSettings, seed: int) -> dict[str, tuple[AnyExample, ...]]:
    """Draw a pool of examples and split it among simulated clients.

    Raises:
        DataError: the pool is too small for that many clients.
    """
    pool = draw_pool(examples, split.pool or len(examples), seed)
    parts = dirichlet_split(pool, clients=split.clients, alpha=split.alpha, seed=seed)
    return {f"client-{number:02d}": part for number, part in enumerate(parts, start=1)}


def check_names(clients: Iterable[str]) -> None:
    """Check that each client has a name that can be seen in logs and reports.

    Raises:
        InputError: a name is not text, is blank or too long, or holds a character that cannot be printed.
    """
    for name in clients:
        if not is_client_name(name):
            raise InputError(f"clients: received the name {shortened(str(name))!r}; allowed: {CLIENT_NAME}. Rename it")


def _read(settings: RunSettings, source: str) -> tuple[AnyExample, ...]:
    data = settings.data
    return read_examples(source, settings.task, text=data.text_column, label=data.label_column)
