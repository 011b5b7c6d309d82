"""``POST /v1/multi-label``: any number of the task's labels for each text."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field

from ifedicl.kinds.examples import Answer
from ifedicl.kinds.multi_label import MultiLabelTask
from ifedicl.serve.asked.any_route import Answers, KindRoute, Result, TextsRequest, answer_of_demo_model

TEXTS_EXAMPLE = ["The lift is stuck, and music keeps us awake"]
ANSWER_EXAMPLE = answer_of_demo_model(
    "tickets",
    "07829826c864",
    {"labels": ["lift", "noise"], "probabilities": {"lift": 0.9937, "heating": 0.0063, "noise": 0.9979}},
    {"labels": [], "probabilities": {"lift": 0.0025, "heating": 0.023, "noise": 0.007}},
)
"""What the adapter of ``tests/real/test_multi_label.py`` answers to :data:`TEXTS_EXAMPLE`."""


class MultiLabelRequest(TextsRequest):
    """One text or several, for one adapter."""


class LabelledSet(Result):
    """The answer to one text."""

    labels: list[str] | None = Field(
        description="the labels that the text has, perhaps none; null if the probability of this set is below min_confidence"
    )
    probabilities: dict[str, float] = Field(description="of every label, each on its own")

    @classmethod
    def of(cls, answer: Answer, least: float) -> Self:
        return cls(labels=answer.value if answer.confidence >= least else None, probabilities=answer.facts["probabilities"])


class MultiLabelAnswer(Answers[LabelledSet]):
    """The answers, in the order of the texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [ANSWER_EXAMPLE]})


ROUTE = KindRoute(
    task=MultiLabelTask,
    request=MultiLabelRequest,
    result=LabelledSet,
    answers=MultiLabelAnswer,
    does="Say which labels one text has, or many.",
    counts="",
    example={"texts": TEXTS_EXAMPLE},
    answer_example=ANSWER_EXAMPLE,
)
