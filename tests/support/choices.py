"""A task of choices on the tiny models, and rows of it."""

from __future__ import annotations

from ifedicl.kinds.choices import Choice
from ifedicl.kinds.choose import ChooseTask
from tests.support import tiny

TASK = ChooseTask(name="places", template="Text: {text}\nPlace:")
OPTIONS = (
    ("at home", "out", "on the table"),
    ("good", "bad"),
    ("at home alone", "at home", "the parcel came late", "out"),
)


def choices(count: int, seed: int = 0) -> tuple[Choice, ...]:
    """Choices with two, three and four options, of one token and of several."""
    return tuple(
        Choice(example.text, OPTIONS[number % 3], (number + seed) % len(OPTIONS[number % 3]))
        for number, example in enumerate(tiny.examples(count, seed=seed))
    )
