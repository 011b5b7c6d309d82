"""Labelled sets, as classifications."""

from __future__ import annotations

from dataclasses import dataclass

from ifedicl.bench.datasets import load_set
from ifedicl.bench.plan import SetSettings
from ifedicl.kinds.classify import Example, Task, as_classification


@dataclass(frozen=True)
class Labelled:
    """Task, training rows and test rows."""

    task: Task
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def load_labelled(name: str, settings: SetSettings) -> Labelled:
    """As :func:`ifedicl.bench.datasets.load_set`; the set must be one of labels."""
    data = load_set(name, settings)
    train, test = ([row for row in rows if isinstance(row, Example)] for rows in (data.train, data.test))
    return Labelled(as_classification(data.task, "this benchmark"), tuple(train), tuple(test))
