"""``POST /v1/extract``: one line of text about each text."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field

from ifedicl.kinds.examples import Answer
from ifedicl.kinds.extraction import TOKENS_OF_A_ROW, ExtractTask
from ifedicl.serve.asked.any_route import Answers, KindRoute, Result, TextsRequest, answer_of_demo_model

TEXTS_EXAMPLE = ["please bring the soup to the garden"]
ANSWER_EXAMPLE = answer_of_demo_model(
    "order",
    "ac7cd2839012",
    {"answer": "item: soup; to: garden", "confidence": 0.9841},
    {"answer": "2000000000000000", "confidence": 0.3366},
)
"""What the adapter of ``tests/real/test_extract.py`` answers to :data:`TEXTS_EXAMPLE`."""


class ExtractRequest(TextsRequest):
    """One text or several, for one adapter."""


class Extracted(Result):
    """The answer to one text."""

    answer: str | None = Field(description="one line of text; null if its confidence is below min_confidence")
    confidence: float = Field(description="the geometric mean of the probabilities of its tokens")

    @classmethod
    def of(cls, answer: Answer, least: float) -> Self:
        return cls(answer=answer.value if answer.confidence >= least else None, confidence=answer.confidence)


class ExtractAnswer(Answers[Extracted]):
    """The answers, in the order of the texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [ANSWER_EXAMPLE]})


ROUTE = KindRoute(
    task=ExtractTask,
    request=ExtractRequest,
    result=Extracted,
    answers=ExtractAnswer,
    does="Write one line about one text or many (experimental).",
    counts=f"each {TOKENS_OF_A_ROW} tokens that an answer may have count as one",
    example={"texts": TEXTS_EXAMPLE},
    answer_example=ANSWER_EXAMPLE,
)
