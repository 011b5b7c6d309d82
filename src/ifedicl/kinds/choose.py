"""Choice: which of its own options an example has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ifedicl.confidence import Confidence
from ifedicl.errors import DataError
from ifedicl.kinds.any_task import AnyTask, check_undivided
from ifedicl.kinds.choices import (
    LETTERS,
    MOST_OPTIONS,
    OPTION_COLUMNS,
    OPTIONS_COLUMN,
    Choice,
    ChoiceEvaluation,
    Options,
    position_in,
    question_in,
)
from ifedicl.kinds.examples import Answer, AnyExample, MultipleChoice, own_example
from ifedicl.metrics import Comparison, Tally

_GROUPS = 9
"""Of examples, whose means differ as examples do: they span the eight directions of the usual subspace."""
_PARTS = 3


class ChooseTask(AnyTask):
    """Which of its own options each text has. The model says how probable each option is behind the prompt."""

    kind: ClassVar[str] = "choose"
    example_class: ClassVar[type] = Choice
    groups_are: ClassVar[str] = "group of examples that their hash draws"
    rows_are: ClassVar[str] = "of right and of wrong options"
    counts_are: ClassVar[str] = "how often each position is right and how often each is chosen"
    sample_row: ClassVar[str] = (
        '{"text": "Why was the lift late?", "options": ["It was stuck", "It was fast"], "label": 0}. '
        "CSV: text,option_a,option_b,label"
    )
    usage: ClassVar[str] = 'on_model().answers([Choice("a question", ("one", "another"))])'
    pipeline_tag: ClassVar[str] = "multiple-choice"

    template: str = Field(
        default="{text}\nAnswer:",
        max_length=100_000,
        description="the prompt, with {text} exactly once where the text goes",
    )
    answer_by: Literal["option", "letter"] = Field(
        default="option",
        description='"option": the words of each option are scored behind the prompt; "letter": the options stand behind the '
        "text, one a line, and their letters are scored",
    )
    normalise_length: bool = Field(
        default=True,
        strict=True,
        description="divide an option's log-probability by its number of tokens",
    )

    def shown(self, example: AnyExample) -> str:
        """What goes into the prompt: the text, and behind it the options if their letters are scored."""
        own = _own(example)
        if self.answer_by == "option":
            return own.text
        return "\n".join([own.text, *(f"{LETTERS[place]}. {option}" for place, option in enumerate(own.options))])

    def words(self, example: AnyExample) -> tuple[str, ...]:
        """What is scored behind the prompt, for each option."""
        own = _own(example)
        return own.options if self.answer_by == "option" else tuple(LETTERS[: len(own.options)])

    @classmethod
    def reads(cls, text: str, label: str) -> tuple[str, ...]:
        return text, label, OPTIONS_COLUMN, *OPTION_COLUMNS

    @classmethod
    def example_of(cls, row: Mapping[str, Any], text: str, label: str) -> Choice:
        asked = question_in(row, text)
        return Choice(asked.text, asked.options, position_in(row, label, asked.options))

    def question_of(self, row: Mapping[str, Any], text: str) -> Choice:
        return question_in(row, text)

    def checked(self, example: AnyExample) -> Choice:
        return _own(example)

    def work_of(self, example: AnyExample) -> int:
        """One for each option: an option may be as long as a text."""
        return len(_own(example).options)

    def check_all(self, examples: Sequence[AnyExample]) -> None:
        self.check_classes(examples)
        if not examples:
            raise DataError("no client has an example; at least one client with examples is needed")

    def example_for(self, text: str, number: int) -> Choice:
        """The text, with its own parts as options."""
        words = text.split()
        size = max(1, -(-len(words) // _PARTS))
        parts = tuple(dict.fromkeys(" ".join(words[start : start + size]) for start in range(0, len(words), size)))
        options = parts if len(parts) > 1 else (*parts, "another")
        return Choice(text, options, number % len(options))

    @property
    def classes(self) -> int:
        return _GROUPS

    def class_of(self, example: AnyExample) -> int:
        """A group of examples that is drawn by the example's hash: options have no classes."""
        return int(_own(example).key, 16) % _GROUPS

    @property
    def columns(self) -> int:
        """Two: each option is a row, which is wrong or right."""
        return 2

    @property
    def answers(self) -> int:
        return MOST_OPTIONS

    @property
    def takes_noise(self) -> bool:
        return False

    def tally(self, scores: npt.NDArray[np.floating], labels: Sequence[Any]) -> Tally:
        return Tally.of(*_among(scores, labels))

    def comparison(
        self, adapter: npt.NDArray[np.floating], zero_shot: npt.NDArray[np.floating], labels: Sequence[Any]
    ) -> Comparison:
        ours, truth = _among(adapter, labels)
        return Comparison.of(ours, _among(zero_shot, labels)[0], truth)

    def evaluation(self, scores: npt.NDArray[np.floating], labels: Sequence[Any]) -> ChoiceEvaluation:
        logs, truth = _among(scores, labels)
        predicted = logs.argmax(axis=1).astype(np.int64)
        counts = np.array([len(own.words) for own in labels], dtype=np.int64)
        loss = Tally.of(logs, truth).loss
        return ChoiceEvaluation(np.array(truth, dtype=np.int64), predicted, counts, loss, Confidence.of(logs, truth))

    def answered(self, scores: npt.NDArray[np.floating], labels: Sequence[Any], examples: Sequence[AnyExample]) -> list[Answer]:
        answers = []
        for row, example in zip(_among(scores, labels)[0], map(_own, examples), strict=True):
            probabilities = np.exp(row[: len(example.options)].astype(np.float64))
            place = int(probabilities.argmax())
            facts = {"options": list(example.options), "probabilities": list(map(float, probabilities))}
            answers.append(Answer(example.options[place], place, float(probabilities[place]), facts))
        return answers

    @property
    def facts(self) -> dict[str, Any]:
        return {"kind": self.kind, "answer_by": self.answer_by}

    @property
    def asks(self) -> str:
        return "one of the example's own options" if self.answer_by == "option" else "the letter of one of its options"

    @property
    def does(self) -> str:
        return "Chooses among the options of each text"

    @property
    def limits(self) -> str:
        return "it chooses among given options only"

    def multiple_choice(self, example: AnyExample) -> MultipleChoice:
        check_undivided(self.normalise_length)
        return MultipleChoice(self.shown(example), self.words(example), _own(example).which)

    @property
    def samples(self) -> dict[str, str]:
        words = LETTERS[:2] if self.answer_by == "letter" else ("one option", "another")
        return {word: self.separator + word for word in words}

    @property
    def card_lines(self) -> dict[str, str]:
        return {"scored behind the prompt": self.asks}

    def summary_of(self, examples: Sequence[AnyExample]) -> dict[str, int]:
        return dict(sorted(Counter(_own(example).stratum for example in examples).items()))


def _among(scores: npt.NDArray[np.floating], labels: Sequence[Options]) -> tuple[npt.NDArray[np.float32], list[int]]:
    """``(N, 26)`` log-probabilities among each example's options, -∞ behind the last, and the right positions.

    ``scores`` are ``(M, 2)``: for each option of each example in turn, those of wrong and of right.
    """
    logs = np.full((len(labels), MOST_OPTIONS), -np.inf, dtype=np.float32)
    margins, first = (scores[:, 1] - scores[:, 0]).astype(np.float64), 0
    for row, own in enumerate(labels):
        part = margins[first : first + len(own.words)]
        logs[row, : len(part)] = part - np.logaddexp.reduce(part)
        first += len(part)
    return logs, [own.which for own in labels]


def _own(example: AnyExample) -> Choice:
    return own_example(example, Choice, "as the task is one of options")
