"""What the routes of all kinds of task have in common: one request, one answer for each text, and the raw model's beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import Answer
from ifedicl.serve.schemas import AdapterName, ModelFacts

TEXT = "text"
"""The column of :attr:`Request.rows` that holds the text."""
TEXTS_EXAMPLE = ["The nurse called me back within minutes and explained everything kindly."]


class Request(BaseModel, ABC):
    """What is asked of one adapter."""

    model_config = ConfigDict(extra="forbid")
    items: ClassVar[str]
    """The field that holds what is asked, as a list."""

    adapter: str | None = Field(default=None, description="name of the adapter; may be left out where only one is served")
    zero_shot: bool = Field(default=False, strict=True, description="true or false: also ask the raw model, for comparison")
    min_confidence: float = Field(
        default=0.0, ge=0.0, le=1.0, strict=True, description="a number from 0 to 1; an answer of a lower probability is null"
    )

    @property
    @abstractmethod
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """What is asked, as rows of a data file."""

    @property
    @abstractmethod
    def strings(self) -> Iterator[tuple[str, str]]:
        """Every text that is sent, behind its name in messages."""


class Result(BaseModel, ABC):
    """The answer to one text."""

    @classmethod
    @abstractmethod
    def of(cls, answer: Answer, least: float) -> Self:
        """From an adapter's answer; what is answered is null if its probability is below ``least``."""


R = TypeVar("R", bound=Result)


class Answers(BaseModel, Generic[R]):
    """The answers, in the order of the texts."""

    model: ModelFacts
    adapter: AdapterName
    results: list[R]
    zero_shot: list[R] | None = Field(default=None, description="the raw model's answers, if asked for")
    truncated: int = Field(description="texts that were cut at their end to fit the model's window")


@dataclass(frozen=True)
class KindRoute:
    """How adapters of one kind of task are asked.

    Attributes:
        task: the kind.
        request: the body of a request.
        result: the answer to one text.
        answers: the body of an answer.
        does: a sentence for the description.
        counts: what a text counts for in the limits, where it is more than one; as a part of a sentence.
        example: fields of a request, for the description.
        answer_example: what an adapter answered to it.
    """

    task: type[AnyTask]
    request: type[Request]
    result: type[Result]
    answers: type[Answers[Any]]
    does: str
    counts: str
    example: Mapping[str, Any]
    answer_example: Mapping[str, Any]

    @property
    def path(self) -> str:
        """The path of the route."""
        return f"/v1/{self.task.kind}"

    @property
    def said(self) -> str:
        """The route's description."""
        return f"{self.does} In the limits {self.counts}." if self.counts else self.does


def answer_of_demo_model(adapter: str, version: str, ours: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer to one item, for the description: of an adapter on the demo's model, and of the raw model."""
    fingerprint = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    return {
        "model": {"name": "SmolLM2-135M-Instruct.Q4_1.gguf", "fingerprint": fingerprint, "dtype": "float32"},
        "adapter": {"name": adapter, "version": version},
        "results": [ours],
        "zero_shot": [raw],
        "truncated": 0,
    }


def alone_too(arrives: type, schema: Any) -> BeforeValidator:
    """Takes one item, which arrives as this type, for a list of one; ``schema`` describes both."""
    return BeforeValidator(lambda value: [value] if isinstance(value, arrives) else value, json_schema_input_type=schema)


Texts = Annotated[
    list[str],
    Field(min_length=1),
    FailFast(),
    alone_too(str, str | Annotated[list[str], Field(min_length=1)]),
]
"""One text or several. A list is read up to its first wrong item: half a million faults would take seconds, and 500 MB."""


class _Texts(BaseModel):
    texts: Texts = Field(description="one text, or a list of them", examples=[TEXTS_EXAMPLE])


class TextsRequest(Request, _Texts):
    """One text or several, for one adapter."""

    items: ClassVar[str] = "texts"

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        return [{TEXT: text} for text in self.texts]

    @property
    def strings(self) -> Iterator[tuple[str, str]]:
        for number, text in enumerate(self.texts, start=1):
            yield f"text number {number}", text
