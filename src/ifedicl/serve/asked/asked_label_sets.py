"""``POST /v1/multi-label``: any number of the task's labels for each text."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from ifedicl.kinds.examples import Answer
from ifedicl.kinds.multi_label import MultiLabelTask
from ifedicl.serve.asked.any_route import Answers, KindRoute, Result, TextsRequest


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


ROUTE = KindRoute(
    task=MultiLabelTask,
    request=MultiLabelRequest,
    result=LabelledSet,
    answers=MultiLabelAnswer,
    does="Say which labels one text has, or many.",
    counts="",
    example={"texts": ["The lift is stuck, and music keeps us awake"]},
)
