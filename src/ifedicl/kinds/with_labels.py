"""Tasks whose texts have labels of the task, each label with a word that the model is asked to say."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from pydantic import Field, model_validator

from ifedicl.errors import DataError
from ifedicl.kinds.any_task import AnyTask

SHOWN_LABEL = 40
"""Most characters of a label in a message: if the file has other columns it may be a text."""
_MOST_LABELS = 10_000
_GAPPED = re.compile(r"\A(-?\d+)\.0+\Z", re.ASCII)
"""A whole number as a fraction."""
Word = Annotated[str, Field(max_length=500)]
"""A label or a label word."""


class LabelledTask(AnyTask):
    """Labels and label words, and the spellings in which data may have a label."""

    labels: tuple[Word, ...] = Field(
        min_length=2, max_length=_MOST_LABELS, description="two or more label names, as they stand in the data"
    )
    label_words: tuple[Word, ...] = Field(
        default=(),
        max_length=_MOST_LABELS,
        description="the words the model is asked to say, one a label in the same order; left out: the labels themselves",
    )
    normalise_length: bool = Field(
        default=False,
        strict=True,
        description="divide a label word's log-probability by its number of tokens",
    )

    @model_validator(mode="before")
    @classmethod
    def _words_are_labels(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        labels = value.get("labels")
        # Labels of a wrong type are one fault, not two.
        if (
            not value.get("label_words")
            and isinstance(labels, list | tuple)
            and all(isinstance(label, str) for label in labels)
        ):
            value["label_words"] = labels
        return value

    def faults(self) -> list[str]:
        problems = []
        if len(self.label_words) != len(self.labels):
            problems.append(f"{len(self.labels)} labels but {len(self.label_words)} label_words; give one word a label")
        for field, names in (("labels", self.labels), ("label_words", self.label_words)):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            if twice:
                problems.append(f"{field} holds {', '.join(map(repr, twice))} more than once; each must be its own")
            if not twice and field == "labels" and (same := _spelled_alike(names)):
                problems.append(
                    f"{field} holds {', '.join(map(ascii, same))}, the same in two Unicode spellings; keep one of them"
                )
            if any(not name.strip() for name in names):
                problems.append(f"{field} holds an empty name; every one needs at least one character")
        return problems + super().faults()

    @property
    def words(self) -> tuple[str, ...]:
        """What is scored behind the prompt: a word for each column of the scores."""
        return self.label_words

    def index(self, label: str) -> int:
        """The position of a label.

        Raises:
            DataError: the task has no such label.
        """
        known = self.label_of(label)
        if known is None:
            raise DataError(self.unknown(label))
        return self.labels.index(known)

    def label_of(self, given: str) -> str | None:
        """The label that ``given`` stands for; None: the task has no such label.

        Unicode has two spellings of é, which look the same: they are one label. Tables with gaps write the number 1 as 1.0.
        """
        return given if given in self.labels else _by_spelling(self.labels).get(_spelled(given))

    def unknown(self, label: str) -> str:
        """The message about a label that the task does not have."""
        near = difflib.get_close_matches(label.strip().lower(), self.labels, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        allowed = ", ".join(map(repr, self.labels))
        return f"label {label[:SHOWN_LABEL]!r} is not in the task; allowed: {allowed}{hint}"

    def missing(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels of the task that do not occur in ``labels``."""
        present = set(labels)
        return tuple(label for label in self.labels if label not in present)


def _spelled(label: str) -> str:
    """A label in the spelling in which labels are compared."""
    return _GAPPED.sub(r"\1", unicodedata.normalize("NFC", label))


def _spelled_alike(labels: Sequence[str]) -> list[str]:
    """The labels that differ in their Unicode spelling only."""
    composed = [unicodedata.normalize("NFC", label) for label in labels]
    counts = Counter(composed)
    return sorted(label for label, name in zip(labels, composed, strict=True) if counts[name] > 1)


@lru_cache(maxsize=16)
def _by_spelling(labels: tuple[str, ...]) -> dict[str, str]:
    """The labels by :func:`_spelled`, without those that share one."""
    counts = Counter(map(_spelled, labels))
    return {_spelled(label): label for label in labels if counts[_spelled(label)] == 1}
