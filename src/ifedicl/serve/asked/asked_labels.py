"""``POST /v1/classify``: one of the task's labels for each text."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field

from ifedicl.kinds.classify import Task
from ifedicl.kinds.examples import Answer
from ifedicl.serve.asked.any_route import TEXTS_EXAMPLE, Answers, KindRoute, Result, TextsRequest, answer_of_demo_model

ANSWER_EXAMPLE = answer_of_demo_model(
    "demo",
    "4236301f3912",
    {"label": "positive", "probabilities": {"negative": 0.1086, "neutral": 0.0382, "positive": 0.8533}},
    {"label": "positive", "probabilities": {"negative": 0.0687, "neutral": 0.0073, "positive": 0.924}},
)
"""What the demo's adapter answers to :data:`TEXTS_EXAMPLE`."""


class ClassifyRequest(TextsRequest):
    """One text or several, for one adapter."""


class Labelled(Result):
    """The answer to one text."""

    label: str | None = Field(description="the most probable label; null if its probability is below min_confidence")
    probabilities: dict[str, float] = Field(description="of every label; they sum to 1")

    @classmethod
    def of(cls, answer: Answer, least: float) -> Self:
        return cls(label=answer.value if answer.confidence >= least else None, probabilities=answer.facts["probabilities"])


class ClassifyAnswer(Answers[Labelled]):
    """The answers, in the order of the texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [ANSWER_EXAMPLE]})


ROUTE = KindRoute(
    task=Task,
    request=ClassifyRequest,
    result=Labelled,
    answers=ClassifyAnswer,
    does="Label one text or many.",
    counts="",
    example={"texts": TEXTS_EXAMPLE},
    answer_example=ANSWER_EXAMPLE,
)
