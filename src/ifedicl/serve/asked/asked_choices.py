"""``POST /v1/choose``: one of its own options for each question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field

from ifedicl.kinds.choices import MOST_OPTIONS, OPTIONS_COLUMN
from ifedicl.kinds.choose import ChooseTask
from ifedicl.kinds.examples import Answer
from ifedicl.serve.asked.any_route import TEXT, Answers, KindRoute, Request, Result, alone_too, answer_of_demo_model

QUESTIONS_EXAMPLE = [
    {
        "text": "The nurse called me back within minutes and explained everything kindly.",
        "options": ["will gladly come again", "will never come again"],
    }
]
ANSWER_EXAMPLE = answer_of_demo_model(
    "who-is-pleased",
    "4e6e4fcfa0c1",
    {"position": 0, "option": "will gladly come again", "probabilities": [0.8827, 0.1173]},
    {"position": 1, "option": "will never come again", "probabilities": [0.3403, 0.6597]},
)
"""What the adapter of ``tests/real/test_choose.py`` answers to :data:`QUESTIONS_EXAMPLE`."""


class Question(BaseModel):
    """A text with its own options."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(description="the question, with what it is about")
    options: Annotated[list[str], FailFast()] = Field(
        min_length=2, max_length=MOST_OPTIONS, description=f"2 to {MOST_OPTIONS} options, as texts"
    )


Questions = Annotated[
    list[Question],
    Field(min_length=1),
    FailFast(),
    alone_too(dict, Question | Annotated[list[Question], Field(min_length=1)]),
]
"""One question or several, read up to the first wrong one, as :data:`~ifedicl.serve.asked.any_route.Texts`."""


class _Questions(BaseModel):
    questions: Questions = Field(
        description="one question, or a list of them: objects with text and options", examples=[QUESTIONS_EXAMPLE]
    )


class ChooseRequest(Request, _Questions):
    """One question or several, each with its own options, for one adapter."""

    items: ClassVar[str] = "questions"

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        return [{TEXT: asked.text, OPTIONS_COLUMN: asked.options} for asked in self.questions]

    @property
    def strings(self) -> Iterator[tuple[str, str]]:
        for number, asked in enumerate(self.questions, start=1):
            yield f"text number {number}", asked.text
            for place, option in enumerate(asked.options, start=1):
                yield f"option number {place} of text number {number}", option


class Chosen(Result):
    """The answer to one question."""

    position: int | None = Field(
        description="of the most probable option among the question's, from 0; null if its probability is below min_confidence"
    )
    option: str | None = Field(description="the most probable option itself; null if its probability is below min_confidence")
    probabilities: list[float] = Field(description="of every option, in the order of the options; they sum to 1")

    @classmethod
    def of(cls, answer: Answer, least: float) -> Self:
        is_sure = answer.confidence >= least
        return cls(
            position=answer.value if is_sure else None,
            option=answer.shown if is_sure else None,
            probabilities=answer.facts["probabilities"],
        )


class ChooseAnswer(Answers[Chosen]):
    """The answers, in the order of the questions."""

    model_config = ConfigDict(json_schema_extra={"examples": [ANSWER_EXAMPLE]})


ROUTE = KindRoute(
    task=ChooseTask,
    request=ChooseRequest,
    result=Chosen,
    answers=ChooseAnswer,
    does="Choose among the options of one question or many.",
    counts="each option counts as one",
    example={"questions": QUESTIONS_EXAMPLE},
    answer_example=ANSWER_EXAMPLE,
)
