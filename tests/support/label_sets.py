"""Made-up texts with several labels."""

from __future__ import annotations

from ifedicl import seeds
from ifedicl.kinds.label_sets import MultiLabelExample
from ifedicl.kinds.multi_label import MultiLabelTask
from tests.support import tiny

LABELS = ("warm", "alone", "at home")
TASK = MultiLabelTask(name="places", labels=LABELS, template="Text: {text}\nPlace:", threshold_word="bad")


def examples(count: int, *, seed: int = 0) -> tuple[MultiLabelExample, ...]:
    """Sentences, each with any of the labels."""
    draw = seeds.generator(seed, "sets")
    return tuple(
        MultiLabelExample(
            f"{tiny.SENTENCES[int(draw.integers(len(tiny.SENTENCES)))]} {number}",
            frozenset(label for label in LABELS if draw.random() < 0.4),
        )
        for number in range(count)
    )
