"""Classification: one of the task's labels for each text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ifedicl.errors import DataError, TaskError
from ifedicl.kinds.any_task import AnyTask, check_undivided
from ifedicl.kinds.examples import Answer, AnyExample, MultipleChoice, check_strings, own_example
from ifedicl.kinds.row_cells import text_in, texts_in
from ifedicl.kinds.scale import OrderedEvaluation
from ifedicl.kinds.with_labels import LabelledTask
from ifedicl.metrics import Comparison, Evaluation, Tally


@dataclass(frozen=True)
class Example:
    """One labelled text. ``label`` is one of the task's label names.

    Raises:
        InputError: text or label is not a string, or holds an unpaired surrogate, which no tokenizer reads.
    """

    text: str
    label: str

    def __post_init__(self) -> None:
        check_strings("an example", vars(self).items())

    @property
    def key(self) -> str:
        """Hex SHA-256 of text and label: it names the example without its content. It stays with the owner."""
        return hashlib.sha256(f"{self.label}\x1f{self.text}".encode()).hexdigest()

    @property
    def stratum(self) -> str:
        """The label: a pool is dealt class by class."""
        return self.label


class Task(LabelledTask):
    """Which of the labels a text has. Each label has a word, and the model says how probable it is after the prompt."""

    kind: ClassVar[str] = "classify"
    names_kind: ClassVar[bool] = False
    example_class: ClassVar[type] = Example
    groups_are: ClassVar[str] = "class"
    rows_are: ClassVar[str] = "by label"
    counts_are: ClassVar[str] = "how many have each label and how often each label is predicted"
    sample_row: ClassVar[str] = (
        '{"text": "The lift is stuck again", "label": "urgent"}. CSV and TSV need a header line: text,label'
    )
    usage: ClassVar[str] = 'classify(["a text"])'
    pipeline_tag: ClassVar[str] = "text-classification"
    measured_only: ClassVar[frozenset[str]] = frozenset({"ordered"})

    ordered: bool = Field(
        default=False,
        strict=True,
        description="the labels are steps of a scale, from low to high: figures also say how far off answers are",
    )

    @classmethod
    def example_of(cls, row: Mapping[str, Any], text: str, label: str) -> Example:
        cells = texts_in(row, (text, label))
        return Example(text_in(cells[0]), cells[1])

    def question_of(self, row: Mapping[str, Any], text: str) -> Example:
        (shown,) = texts_in(row, (text,))
        return Example(shown, self.labels[0])

    def answered(self, scores: npt.NDArray[np.floating], labels: Sequence[Any], examples: Sequence[AnyExample]) -> list[Answer]:
        del labels, examples  # each text has the same possible answers
        answers = []
        for row in np.exp(scores):
            label, probabilities = self.labels[int(row.argmax())], dict(zip(self.labels, map(float, row), strict=True))
            answers.append(Answer(label, label, probabilities[label], {"probabilities": probabilities}))
        return answers

    def checked(self, example: AnyExample) -> Example:
        known = self.label_of(_own(example).label)
        if known is None:
            raise DataError(f"{self.unknown(_own(example).label)}. Correct the row, or add the label to the task")
        return Example(example.text, known)

    def check_all(self, examples: Sequence[AnyExample]) -> None:
        stated = {_own(example).label for example in examples}
        labels = {self.label_of(label) for label in stated}
        if unknown := [label for label in stated if self.label_of(label) is None]:
            raise DataError(f"{len(unknown)} labels are not in the task; allowed: {', '.join(self.labels)}")
        if not labels:
            raise DataError("no client has an example; at least one client with examples of two labels is needed")
        if len(labels) < 2:
            raise DataError(
                f"all examples have the label {next(iter(labels))!r}; at least two of {', '.join(self.labels)} are needed. "
                "Add examples of another label"
            )

    def example_for(self, text: str, number: int) -> Example:
        return Example(text, self.labels[number % len(self.labels)])

    @property
    def classes(self) -> int:
        return len(self.labels)

    def class_of(self, example: AnyExample) -> int:
        return self.index(_own(example).label)

    @property
    def columns(self) -> int:
        return len(self.labels)

    @property
    def answers(self) -> int:
        return len(self.labels)

    @property
    def takes_noise(self) -> bool:
        return True

    def tally(self, scores: npt.NDArray[np.floating], labels: Sequence[Any]) -> Tally:
        return Tally.of(scores, labels)

    def comparison(
        self, adapter: npt.NDArray[np.floating], zero_shot: npt.NDArray[np.floating], labels: Sequence[Any]
    ) -> Comparison:
        return Comparison.of(adapter, zero_shot, labels)

    def evaluation(self, scores: npt.NDArray[np.floating], labels: Sequence[Any]) -> Evaluation:
        return (OrderedEvaluation if self.ordered else Evaluation).of(self.labels, scores, labels)

    @property
    def facts(self) -> dict[str, Any]:
        scale = {"ordered": True} if self.ordered else {}
        return {"labels": list(self.labels), "label_words": list(self.label_words), **scale}

    @property
    def asks(self) -> str:
        return " or ".join(self.label_words)

    @property
    def does(self) -> str:
        return f"Labels text as {', '.join(self.labels)}"

    @property
    def limits(self) -> str:
        return "it chooses among its labels only"

    def multiple_choice(self, example: AnyExample) -> MultipleChoice:
        check_undivided(self.normalise_length)
        return MultipleChoice(example.text, self.label_words, self.class_of(example))

    @property
    def samples(self) -> dict[str, str]:
        return {label: self.separator + word for label, word in zip(self.labels, self.label_words, strict=True)}

    @property
    def card_lines(self) -> dict[str, str]:
        return {"label words": ", ".join(self.label_words)}

    def summary_of(self, examples: Sequence[AnyExample]) -> dict[str, int]:
        counts = Counter(_own(example).label for example in examples)
        return {label: counts[label] for label in self.labels if counts[label]} | counts


def as_classification(task: AnyTask, user: str) -> Task:
    """The task, which must be a classification.

    Raises:
        TaskError: it is of another kind; ``user`` names what needs a classification.
    """
    if not isinstance(task, Task):
        raise TaskError(
            f"task.kind: received {task.kind!r}; allowed for {user}: {Task.kind!r}. Give a task with labels, or do without it"
        )
    return task


def _own(example: AnyExample) -> Example:
    return own_example(example, Example, "as the task is a classification")
