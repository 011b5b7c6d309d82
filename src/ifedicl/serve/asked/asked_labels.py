"""``POST /v1/classify``: one of the task's labels for each text."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, Field

from ifedicl.kinds.classify import Task
from ifedicl.kinds.examples import Answer
from ifedicl.serve.asked.any_route import TEXTS_EXAMPLE, Answers, KindRoute, Result, TextsRequest

ANSWER_EXAMPLE: dict[str, Any] = {
    "model": {
        "name": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "fingerprint": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "dtype": "float32",
    },
    "adapter": {"name": "demo", "version": "4236301f3912"},
    "results": [{"label": "positive", "probabilities": {"negative": 0.1086, "neutral": 0.0382, "positive": 0.8533}}],
    "zero_shot": [{"label": "positive", "probabilities": {"negative": 0.0687, "neutral": 0.0073, "positive": 0.924}}],
    "truncated": 0,
}
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
