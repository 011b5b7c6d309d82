"""Labelled sets, as classifications."""

from __future__ import annotations

from dataclasses import dataclass

from ifedicl.bench.datasets import load_set
from ifedicl.bench.plan import SetSettings
from ifedicl.federation.reference_text import REFERENCE_TEXTS
from ifedicl.kinds.classify import Example, Task, as_classification


@dataclass(frozen=True)
class Labelled:
    """Task, training rows and test rows."""

    task: Task
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def reference_examples(task: Task) -> tuple[Example, ...]:
    """The texts of nobody, as :meth:`ifedicl.federation.public_text.PublicText.examples` gives them."""
    return tuple(task.example_for(text, place) for place, text in enumerate(REFERENCE_TEXTS))


def load_labelled(name: str, settings: SetSettings) -> Labelled:
    """As :func:`ifedicl.bench.datasets.load_set`; the set must be one of labels."""
    data = load_set(name, settings)
    train, test = ([row for row in rows if isinstance(row, Example)] for rows in (data.train, data.test))
    return Labelled(as_classification(data.task, "this benchmark"), tuple(train), tuple(test))
