"""Extraction: the answer is text, which the model writes behind the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ifedicl.errors import DataError
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import Answer, AnyExample, own_example
from ifedicl.kinds.passages import EXACT, LOG, SURE, TEXT, Passage, TextEvaluation
from ifedicl.kinds.row_cells import text_in, texts_in
from ifedicl.metrics import Comparison, Tally

_LONGEST_WORD = 8
TOKENS_OF_A_ROW = 8
"""Written one after another, they take about as long as a row of a pass."""
_SAMPLE = "an answer"
_PROSE = "one line of text: a name, a value, or fields as in `name: value; name: value`"


class ExtractTask(AnyTask):
    """What the text says of something, as text. The model writes the answer, one line, behind the prompt."""

    kind: ClassVar[str] = "extract"
    example_class: ClassVar[type] = Passage
    groups_are: ClassVar[str] = "class, of which there is one"
    rows_are: ClassVar[str] = "of none"
    counts_are: ClassVar[str] = "and their number"
    sample_row: ClassVar[str] = (
        '{"text": "Play some jazz by Miles Davis", "label": "genre: jazz; artist: Miles Davis"}. '
        "CSV and TSV need a header line: text,label"
    )
    usage: ClassVar[str] = 'on_model().answers([Passage("a text")])'
    pipeline_tag: ClassVar[str] = "text-generation"

    template: str = Field(
        default="Text: {text}\nAnswer:",
        max_length=100_000,
        description="the prompt, with {text} exactly once where the text goes",
    )
    most_answer_tokens: int = Field(
        default=64,
        ge=1,
        le=2048,
        strict=True,
        description="most tokens of an answer, 1 to 2048; longer answers in data are refused, what is written ends there. So "
        "many are kept free in the model's window",
    )

    @classmethod
    def example_of(cls, row: Mapping[str, Any], text: str, label: str) -> Passage:
        cells = texts_in(row, (text, label))
        return Passage(text_in(cells[0]), cells[1].strip())

    def question_of(self, row: Mapping[str, Any], text: str) -> Passage:
        (shown,) = texts_in(row, (text,))
        return Passage(shown)

    def answered(self, scores: npt.NDArray[Any], labels: Sequence[Any], examples: Sequence[AnyExample]) -> list[Answer]:
        del labels, examples  # what is written does not depend on them
        sure = np.exp(scores[:, SURE].astype(np.float64))
        return [
            Answer(text, text, float(value), {"confidence": float(value)})
            for text, value in zip(scores[:, TEXT], sure, strict=True)
        ]

    def checked(self, example: AnyExample) -> Passage:
        own = _own(example)
        if not own.answer.strip():
            raise DataError("the answer is empty; remove the row, or write what stands for no answer, for instance none")
        if len(own.answer.splitlines()) > 1:
            raise DataError("the answer has several lines; allowed: one. Put ; between its parts")
        return own

    def work_of(self, example: AnyExample) -> int:
        """By the tokens that the answer may have."""
        del example
        return -(-self.most_answer_tokens // TOKENS_OF_A_ROW)

    def check_all(self, examples: Sequence[AnyExample]) -> None:
        for example in examples:
            self.checked(example)
        if not examples:
            raise DataError("no client has an example; at least one client with examples is needed")

    def example_for(self, text: str, number: int) -> Passage:
        """The text, with one of its own words as the answer."""
        words = text.split() or ["none"]
        return Passage(text, words[number % len(words)][:_LONGEST_WORD])

    @property
    def classes(self) -> int:
        return 1

    def class_of(self, example: AnyExample) -> int:
        _own(example)
        return 0

    @property
    def columns(self) -> int:
        return 0

    @property
    def answers(self) -> int:
        return 1

    @property
    def takes_noise(self) -> bool:
        return False

    def tally(self, scores: npt.NDArray[Any], labels: Sequence[Any]) -> Tally:
        """Counts answers whose tokens are exactly the true ones, with the mean loss of each example's tokens."""
        del labels  # they are in the scores
        logs = scores[:, LOG].astype(np.float64)
        return Tally(len(scores), int(scores[:, EXACT].sum()), float(-logs.sum()))

    def comparison(self, adapter: npt.NDArray[Any], zero_shot: npt.NDArray[Any], labels: Sequence[Any]) -> Comparison:
        gains = adapter[:, LOG].astype(np.float64) - zero_shot[:, LOG].astype(np.float64)
        disagreements = int((adapter[:, EXACT] != zero_shot[:, EXACT]).sum())
        both = self.tally(adapter, labels), self.tally(zero_shot, labels)
        return Comparison(*both, float((gains**2).sum()), disagreements, (len(gains),), (len(gains),))

    def evaluation(self, scores: npt.NDArray[Any], labels: Sequence[Any]) -> TextEvaluation:
        return TextEvaluation.of(scores, [wanted.text for wanted in labels])

    @property
    def facts(self) -> dict[str, Any]:
        return {"kind": self.kind, "most_answer_tokens": self.most_answer_tokens}

    @property
    def asks(self) -> str:
        return f"an answer of at most {self.most_answer_tokens} tokens"

    @property
    def does(self) -> str:
        return "Writes one line of text about each text"

    @property
    def limits(self) -> str:
        return "it may write what does not stand in the text (this kind of task is experimental)"

    @property
    def samples(self) -> dict[str, str]:
        return {_SAMPLE: self.separator + _SAMPLE}

    @property
    def card_lines(self) -> dict[str, str]:
        return {"answer": f"{_PROSE}; at most {self.most_answer_tokens} tokens"}

    def summary_of(self, examples: Sequence[AnyExample]) -> dict[str, int]:
        return {"with an answer": len(examples)} if examples else {}


def _own(example: AnyExample) -> Passage:
    return own_example(example, Passage, "as the answer of the task is text")
