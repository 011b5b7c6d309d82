"""The labelled text of a run: what each client holds, and what the adapter is tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ifedicl.data import Example, dirichlet_split, draw_pool, read_examples
from ifedicl.errors import DataError
from ifedicl.settings import RunSettings, SplitSettings
from ifedicl.task import Task


def client_examples(settings: RunSettings) -> dict[str, tuple[Example, ...]]:
    """Each client's labelled text, read from its file or dealt out.

    Raises:
        DataError: a file or its rows are wrong, or all clients together hold one class only.
    """
    data, task = settings.data, settings.task

    def read(source: str) -> tuple[Example, ...]:
        return read_examples(source, task, text=data.text_column, label=data.label_column)

    if data.clients is not None:
        clients = {name: read(source) for name, source in data.clients.items()}
    else:
        assert data.train is not None
        clients = simulated_clients(read(data.train), data.split, settings.seed)
    check_classes(task, clients)
    return clients


def simulated_clients(examples: Sequence[Example], split: SplitSettings, seed: int) -> dict[str, tuple[Example, ...]]:
    """Draw a pool and deal it out.

    Raises:
        DataError: the pool is too small for that many clients.
    """
    pool = draw_pool(examples, split.pool or len(examples), seed)
    hands = dirichlet_split(pool, clients=split.clients, alpha=split.alpha, seed=seed)
    return {f"client-{number:02d}": hand for number, hand in enumerate(hands, start=1)}


def check_classes(task: Task, clients: Mapping[str, Sequence[Example]]) -> None:
    """Refuse what nothing can be learnt from.

    Raises:
        DataError: all clients together hold one class only or nothing, or a label that the task does not have.
    """
    held = {example.label for examples in clients.values() for example in examples}
    if unknown := held - set(task.labels):
        raise DataError(f"{len(unknown)} labels are not in the task; allowed: {', '.join(task.labels)}")
    if not held:
        raise DataError("no client holds any example; at least one client with examples of two labels is needed")
    if len(held) < 2:
        raise DataError(
            f"all examples have the label {next(iter(held))!r}; at least two of {', '.join(task.labels)} are needed. "
            "Add examples of another label"
        )


def test_examples(settings: RunSettings) -> tuple[Example, ...]:
    """The test file's labelled text; none where the config names no file.

    Raises:
        DataError: the file or its rows are wrong.
    """
    data = settings.data
    if data.test is None:
        return ()
    return read_examples(data.test, settings.task, text=data.text_column, label=data.label_column)
