"""What a kind of task is: one class for what is asked of the model, without torch.

The half with torch, which encodes examples and reads the model, is a :class:`~ifedicl.backbone.base_scorer.BaseScorer`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ifedicl.errors import DataError, InputError, TaskError
from ifedicl.kinds.examples import Answer, AnyEvaluation, AnyExample, MultipleChoice
from ifedicl.metrics import Comparison, Tally

TEXT_FIELD = "{text}"
SHOWN_TEXT = "(one of your texts)"
"""Stands for a text where a prompt is shown."""


class AnyTask(BaseModel, ABC):
    """The prompt and answers that every client uses with the frozen model; one subclass for each kind of task.

    Parties with the same digest use exactly the same prompt, so their context vectors can be averaged.

    What follows speaks of *labels*: the encoded answers of examples, as the kind's scorer makes them
    (:attr:`ifedicl.backbone.prompts.EncodedExamples.labels`), and of *scores*: what it reads of a model for them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    """The name of the kind in files."""
    example_class: ClassVar[type]
    """The class of its examples."""
    names_kind: ClassVar[bool] = True
    """False: files do not name the kind, as they did before there were several."""
    measured_only: ClassVar[frozenset[str]] = frozenset()
    """Fields that change figures only: they do not count in the digest, and files leave them out at their defaults."""
    overlaps: ClassVar[bool] = False
    """Whether a row that a readout is fitted on may have several columns; then every row has the first."""
    has_word_loss: ClassVar[bool] = True
    """Whether the loss over the whole vocabulary is defined for it."""

    name: str = Field(min_length=1, max_length=200, description="a short name for people and reports")
    template: str = Field(
        default="Text: {text}\nLabel:",
        max_length=100_000,
        description="the prompt, with {text} exactly once where the text goes",
    )
    separator: str = Field(
        default=" ",
        max_length=100,
        description='what stands between prompt and answer; left out: " " after a raw prompt, "" in a chat turn',
    )
    turn: Literal["raw", "chat"] = Field(
        default="raw",
        description='"raw" sends the template as it is; "chat" wraps it in the model\'s own chat turn',
    )

    @model_validator(mode="before")
    @classmethod
    def _common_defaults(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if value.get("kind") == cls.kind:
            del value["kind"]
        if value.get("turn") == "chat":
            value.setdefault("separator", "")
        return value

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        for name in self.measured_only & fields.keys():
            if fields[name] == type(self).model_fields[name].default:
                del fields[name]
        return {"kind": self.kind, **fields} if self.names_kind else fields

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if problems := self.faults():
            raise ValueError("; ".join(problems))
        return self

    def faults(self) -> list[str]:
        """What is wrong with fields together: here with prompt and separator."""
        problems = []
        if self.template[-1:].isspace() and self.separator[:1].isspace():
            problems.append("template ends in white space and separator begins with it; remove one of them")
        if self.template.count(TEXT_FIELD) != 1:
            problems.append(f"template holds {TEXT_FIELD} {self.template.count(TEXT_FIELD)} times; it must stand there once")
        return problems

    @property
    def digest(self) -> str:
        """Hex SHA-256 of everything that changes the prompt or the answers; the name does not count."""
        content = json.dumps(self.model_dump(exclude={"name", *self.measured_only}), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    def prompt(self, text: str) -> str:
        """The template with ``text`` inserted. Braces within the text have no meaning."""
        head, tail = self.template.split(TEXT_FIELD)
        return head + text + tail

    # Data

    @classmethod
    def reads(cls, text: str, label: str) -> tuple[str, ...]:
        """The columns of a file that examples are made of; arguments are those of :meth:`example_of`."""
        return text, label

    @classmethod
    @abstractmethod
    def example_of(cls, row: Mapping[str, Any], text: str, label: str) -> AnyExample:
        """The example of a row of a file, whatever the task's labels.

        Args:
            row: cells by column.
            text: the column that holds the text.
            label: the column that holds the answer.

        Raises:
            DataError: what is wrong with the row, in words that follow the number of its line; never its text.
        """

    @abstractmethod
    def question_of(self, row: Mapping[str, Any], text: str) -> AnyExample:
        """The example of a row without an answer, to be answered; arguments and errors as :meth:`example_of`."""

    @abstractmethod
    def answered(self, scores: npt.NDArray[Any], labels: Sequence[Any], examples: Sequence[AnyExample]) -> list[Answer]:
        """The answers that the scores of examples give."""

    @abstractmethod
    def checked(self, example: AnyExample) -> AnyExample:
        """The example in the task's own spelling.

        Raises:
            DataError: its answer is none of the task.
        """

    def takes(self, example: AnyExample) -> bool:
        """Whether an example's answer is one of the task."""
        try:
            self.checked(example)
        except (DataError, InputError):
            return False
        return True

    def check_classes(self, examples: Sequence[object]) -> None:
        """Check that all are examples of this kind.

        Raises:
            InputError: one is something else.
        """
        for number, example in enumerate(examples, start=1):
            if not isinstance(example, self.example_class):
                raise InputError(
                    f"examples: received {type(example).__name__} as number {number}; allowed: {self.example_class.__name__}. "
                    "Make them first"
                )

    def work_of(self, example: AnyExample) -> int:
        """How many rows of a pass it takes to answer an example, about: for so many texts a server counts it. Usually one."""
        del example
        return 1

    @abstractmethod
    def check_all(self, examples: Sequence[AnyExample]) -> None:
        """Check the examples of all clients together.

        Raises:
            DataError: nothing can be learnt of them.
        """

    @abstractmethod
    def example_for(self, text: str, number: int) -> AnyExample:
        """A text that belongs to nobody, with an answer by ``number``. The true answer is unknown and does not matter."""

    # Numbers

    @property
    @abstractmethod
    def classes(self) -> int:
        """Of the examples, in stage 1: the means of each can be sent apart. 1: there is one mean."""

    @abstractmethod
    def class_of(self, example: AnyExample) -> int:
        """The class of an example, from 0.

        Raises:
            DataError: as :meth:`checked`.
        """

    @property
    @abstractmethod
    def columns(self) -> int:
        """``C``: the scores that a readout gives for each row that is read, and the log-probabilities that it reads of it.

        0: the kind has no readout.
        """

    @property
    @abstractmethod
    def answers(self) -> int:
        """The answers that a comparison counts."""

    @property
    @abstractmethod
    def takes_noise(self) -> bool:
        """Whether bounded sums with noise are defined for it."""

    # Figures

    @abstractmethod
    def tally(self, scores: npt.NDArray[np.floating], labels: Sequence[Any]) -> Tally:
        """Count scores of examples against their labels."""

    @abstractmethod
    def comparison(
        self, adapter: npt.NDArray[np.floating], zero_shot: npt.NDArray[np.floating], labels: Sequence[Any]
    ) -> Comparison:
        """Compare the scores of an adapter and of the raw model on the same examples."""

    @abstractmethod
    def evaluation(self, scores: npt.NDArray[Any], labels: Sequence[Any]) -> AnyEvaluation:
        """All figures of scores on examples."""

    # Words

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What can be answered, as JSON, for people and other programs; without name and prompt."""

    @property
    @abstractmethod
    def asks(self) -> str:
        """What follows the prompt, in words, for instance ``'yes' or 'no'``."""

    @property
    @abstractmethod
    def does(self) -> str:
        """What an adapter of it does, as the beginning of a sentence, for instance ``Labels text as yes, no``."""

    @property
    @abstractmethod
    def limits(self) -> str:
        """What such an adapter cannot do, as the beginning of a sentence."""

    def multiple_choice(self, example: AnyExample) -> MultipleChoice:  # noqa: ARG002 - other kinds read it
        """The example as a test of multiple choice asks it.

        Raises:
            TaskError: such a test cannot ask for this task's answers.
        """
        raise TaskError(
            f"task.kind: received {self.kind!r}, whose answers a test of multiple choice cannot ask for; allowed: a kind whose "
            "answers are labels or options. Use `ifedicl evaluate`"
        )

    @property
    @abstractmethod
    def samples(self) -> Mapping[str, str]:
        """Answers by name, as they stand behind the prompt; made-up ones where each example has its own.

        None: other programs cannot answer by comparing them, so there is no export.
        """

    @property
    @abstractmethod
    def card_lines(self) -> Mapping[str, str]:
        """Further lines of a model card, by name."""

    groups_are: ClassVar[str]
    """What :attr:`classes` are, after "by"."""
    rows_are: ClassVar[str]
    """Of what a readout's sums are, behind "hidden states"."""
    counts_are: ClassVar[str]
    """What a comparison counts of answers."""
    sample_row: ClassVar[str]
    """A row of a data file, for a new config file."""
    usage: ClassVar[str]
    """How an adapter is called in Python."""
    pipeline_tag: ClassVar[str]
    """The hub's name for what it does."""

    @abstractmethod
    def summary_of(self, examples: Sequence[AnyExample]) -> dict[str, int]:
        """The number of examples by answer, for a client's own eyes."""


def check_undivided(normalise_length: bool) -> None:
    """Check that scores are plain sums of log-probabilities, as a test of multiple choice compares them.

    Raises:
        TaskError: they are divided by numbers of tokens.
    """
    if normalise_length:
        raise TaskError(
            "task.normalise_length: received true; allowed: false, because a test of multiple choice (lm-evaluation-harness) "
            "divides by characters or not at all, and its figures would be others. Use `ifedicl evaluate`"
        )
