"""What a policy says of a request and of the reply to it, rule by rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    EvaluateReply,
    EvaluateRequest,
    FailureCode,
    GradientReply,
    GradientRequest,
    Reply,
    Request,
    StatisticsReply,
    StatisticsRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
)
from ifedicl.ledger.usage import Spent
from ifedicl.owner.policy import LeastSettings, Policy
from ifedicl.settings import Method
from ifedicl.task import Task


class RefusalError(Exception):
    """The policy does not let a reply out.

    Attributes:
        code: what the coordinator is told.
        reason: what the owner's own log tells; of numbers and settings, never of text.
    """

    def __init__(self, code: FailureCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def check_assignment(policy: Policy, task: Task, method: Method, fingerprint: str) -> None:
    """Whether this may be asked at all.

    Raises:
        RefusalError: task, model or settings are not allowed.
    """
    allow = policy.allow
    if not allow.task(task.digest):
        raise RefusalError(FailureCode.REFUSED, f"task {task.digest} is not in allow.tasks")
    if not allow.model(fingerprint):
        raise RefusalError(FailureCode.REFUSED, f"model {fingerprint} is not in allow.models")
    if method.classes_apart and not allow.class_counts:
        raise RefusalError(FailureCode.REFUSED, "vectors by class tell how many of each there are; allow.class_counts is false")


def check_request(policy: Policy, request: Request, spent: Spent) -> None:
    """Whether this kind of answer may leave, and whether the job has any left.

    Raises:
        RefusalError: it may not.
    """
    allow, most = policy.allow, policy.most.rounds
    if isinstance(request, StatisticsRequest) and not (allow.readout_sums and allow.class_counts):
        raise RefusalError(
            FailureCode.REFUSED, "readout sums tell products of hidden states and class counts; both must be allowed"
        )
    reads = isinstance(request, EvaluateRequest | CompareRequest) and request.readouts
    if reads and not (allow.readout_sums and allow.class_counts):
        raise RefusalError(
            FailureCode.REFUSED,
            "a readout may be made to count labels or to weigh hidden states; readout_sums and class_counts must be allowed",
        )
    if isinstance(request, CompareRequest) and not allow.class_counts:
        raise RefusalError(
            FailureCode.REFUSED, "gate figures tell how many of each label there are; allow.class_counts is false"
        )
    if isinstance(request, GradientRequest) and not allow.gradient_sums:
        raise RefusalError(FailureCode.REFUSED, "allow.gradient_sums is false")
    if isinstance(request, UpdateRequest | GradientRequest) and most and spent.rounds >= most:
        raise RefusalError(FailureCode.SPENT, f"{spent.rounds} updates of this job left; most.rounds is {most}")


def check_behind(policy: Policy, method: Method, reply: Reply) -> None:
    """Whether enough examples stand behind a reply.

    Raises:
        RefusalError: they do not.
    """
    rule = _BEHIND.get(type(reply))
    if rule is not None:
        rule(reply, policy.least, method)


def check_new(policy: Policy, groups: npt.NDArray[np.int64]) -> None:
    """Whether enough examples came since an earlier answer, which can be subtracted from this one.

    Args:
        policy: the owner's.
        groups: ``(G,)``, how many new ones are in each group whose sums are apart.

    Raises:
        RefusalError: they did not.
    """
    _require(int(groups.sum()), policy.least.new_examples, "new examples", "new_examples")
    if len(groups) > 1:
        _require(int(groups[groups > 0].min()), policy.least.group, "new examples in a class", "group")


def check_epsilon(policy: Policy, of_this_job: float | None, of_others: float) -> None:
    """Whether a reply tells no more of one example than all jobs together may.

    Raises:
        RefusalError: it does, or nothing bounds it.
    """
    most = policy.most.epsilon
    if not most:
        return
    if of_this_job is None:
        raise RefusalError(FailureCode.REFUSED, f"nothing bounds what this job tells of one example; most.epsilon is {most:g}")
    if of_this_job + of_others > most:
        raise RefusalError(
            FailureCode.SPENT, f"all jobs would tell ε = {of_this_job + of_others:.2f} of one example; most.epsilon is {most:g}"
        )


def _vectors(reply: VectorsReply, least: LeastSettings, _method: Method) -> None:
    # Of added examples alone, least.new_examples counts.
    if reply.replaces:
        _require(reply.vectors.examples, least.examples, "training examples", "examples")
    groups = reply.vectors.counts[reply.vectors.counts > 0]
    if len(reply.vectors.counts) > 1 and len(groups):
        _require(int(groups.min()), least.group, "examples in the smallest class", "group")


def _update(reply: UpdateReply, least: LeastSettings, method: Method) -> None:
    calibration = method.calibration
    _require(
        min(reply.examples, calibration.batch_size * calibration.local_steps),
        least.examples,
        "examples in an update",
        "examples",
    )


def _gradient(reply: GradientReply, least: LeastSettings, _method: Method) -> None:
    if reply.sums.examples:  # a sum over nothing tells that nothing was drawn
        _require(reply.sums.examples, least.examples, "examples in a gradient sum", "examples")


def _statistics(reply: StatisticsReply, least: LeastSettings, _method: Method) -> None:
    _require(reply.sums.examples, least.examples, "training examples", "examples")


def _evaluate(reply: EvaluateReply, least: LeastSettings, _method: Method) -> None:
    _require(min(tally.examples for tally in reply.tallies), least.held_out, "held-out examples", "held_out")


def _compare(reply: CompareReply, least: LeastSettings, _method: Method) -> None:
    _require(reply.comparison.adapter.examples, least.held_out, "gate examples", "held_out")


def _require(count: int, least: int, what: str, field: str) -> None:
    if count < least:
        raise RefusalError(FailureCode.TOO_FEW, f"{count} {what}; least.{field} is {least}")


_BEHIND: Mapping[type[Reply], Callable[[Any, LeastSettings, Method], None]] = {
    VectorsReply: _vectors,
    UpdateReply: _update,
    GradientReply: _gradient,
    StatisticsReply: _statistics,
    EvaluateReply: _evaluate,
    CompareReply: _compare,
}
