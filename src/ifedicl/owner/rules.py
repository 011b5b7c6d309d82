"""The rules of a policy, for a request and for the reply to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ifedicl.federation import messages
from ifedicl.federation.messages import FailureCode, Reply, Request
from ifedicl.ledger.usage import Spent
from ifedicl.owner.policy import LeastSettings, Policy
from ifedicl.settings import Method
from ifedicl.task import Task


class RefusalError(Exception):
    """The policy does not allow a reply: a code for the coordinator, a reason for the owner's own log.

    The reason holds numbers and settings, never text.
    """

    def __init__(self, reason: str, code: FailureCode = FailureCode.REFUSED) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def check_assignment(policy: Policy, task: Task, method: Method, fingerprint: str) -> None:
    """Check task, model and settings.

    Raises:
        RefusalError: the policy does not allow them.
    """
    allow = policy.allow
    if not allow.task(task.digest):
        raise RefusalError(f"allow.tasks does not list task {task.digest}")
    if not allow.model(fingerprint):
        raise RefusalError(f"allow.models does not list model {fingerprint}")
    if method.classes_apart and not allow.class_counts:
        raise RefusalError("allow.class_counts is false; vectors by class reveal how many examples each class has")


def check_request(policy: Policy, request: Request, spent: Spent) -> None:
    """Check that this kind of reply may leave, and that the job has rounds left.

    Raises:
        RefusalError: the policy does not allow it.
    """
    allow, most = policy.allow, policy.most.rounds
    has_readout = isinstance(request, messages.EvaluateRequest | messages.CompareRequest) and bool(request.readouts)
    forbidden = {
        "allow.readout_sums or allow.class_counts is false; readout sums reveal products of hidden states and class counts": (
            isinstance(request, messages.StatisticsRequest) and not (allow.readout_sums and allow.class_counts)
        ),
        "allow.readout_sums or allow.class_counts is false; a readout can be built to count labels or to weigh hidden states": (
            has_readout and not (allow.readout_sums and allow.class_counts)
        ),
        "allow.class_counts is false; gate figures reveal how many examples each label has": (
            isinstance(request, messages.CompareRequest) and not allow.class_counts
        ),
        "allow.gradient_sums is false": isinstance(request, messages.GradientRequest) and not allow.gradient_sums,
    }
    for reason, applies in forbidden.items():
        if applies:
            raise RefusalError(reason)
    if isinstance(request, messages.UpdateRequest | messages.GradientRequest) and most and spent.rounds >= most:
        raise RefusalError(f"most.rounds is {most}; {spent.rounds} updates of this job have left", FailureCode.SPENT)


def check_behind(policy: Policy, method: Method, reply: Reply) -> None:
    """Check that enough examples stand behind a reply.

    Raises:
        RefusalError: there are too few.
    """
    if rule := _BEHIND.get(type(reply)):
        rule(reply, policy.least, method)


def check_new(policy: Policy, groups: npt.NDArray[np.int64]) -> None:
    """Check that enough examples were added since an earlier reply, which can be subtracted from this one.

    Args:
        policy: the owner's.
        groups: ``(G,)``: new examples in each group that has its own sum.

    Raises:
        RefusalError: there are too few.
    """
    _require(int(groups.sum()), policy.least.new_examples, "new examples", "new_examples")
    if len(groups) > 1:
        _require(int(groups[groups > 0].min()), policy.least.group, "new examples in a class", "group")


def check_epsilon(policy: Policy, of_this_job: float | None, of_others: float) -> None:
    """Check the ε of all jobs together.

    Raises:
        RefusalError: it exceeds the policy's limit, or this job has no DP guarantee.
    """
    most = policy.most.epsilon
    if not most:
        return
    if of_this_job is None:
        raise RefusalError(f"most.epsilon is {most:g}; this job has no DP guarantee")
    if (total := of_this_job + of_others) > most:
        raise RefusalError(f"most.epsilon is {most:g}; all jobs together would spend ε = {total:.2f}", FailureCode.SPENT)


def _vectors(reply: messages.VectorsReply, least: LeastSettings, _method: Method) -> None:
    # For added examples alone, least.new_examples applies.
    if reply.replaces:
        _require(reply.vectors.examples, least.examples, "training examples", "examples")
    groups = reply.vectors.counts[reply.vectors.counts > 0]
    if len(reply.vectors.counts) > 1 and len(groups):
        _require(int(groups.min()), least.group, "examples in the smallest class", "group")


def _update(reply: messages.UpdateReply, least: LeastSettings, method: Method) -> None:
    trained = min(reply.examples, method.calibration.batch_size * method.calibration.local_steps)
    _require(trained, least.examples, "examples in an update", "examples")


def _gradient(reply: messages.GradientReply, least: LeastSettings, _method: Method) -> None:
    if reply.sums.examples:  # an empty sum reveals only that no example was drawn
        _require(reply.sums.examples, least.examples, "examples in a gradient sum", "examples")


def _statistics(reply: messages.StatisticsReply, least: LeastSettings, _method: Method) -> None:
    _require(reply.sums.examples, least.examples, "training examples", "examples")


def _evaluate(reply: messages.EvaluateReply, least: LeastSettings, _method: Method) -> None:
    _require(min(tally.examples for tally in reply.tallies), least.held_out, "held-out examples", "held_out")


def _compare(reply: messages.CompareReply, least: LeastSettings, _method: Method) -> None:
    _require(reply.comparison.adapter.examples, least.held_out, "gate examples", "held_out")


def _require(count: int, least: int, what: str, field: str) -> None:
    if count < least:
        raise RefusalError(f"least.{field} is {least}; received {count} {what}", FailureCode.TOO_FEW)


_BEHIND: Mapping[type[Reply], Callable[[Any, LeastSettings, Method], None]] = {
    messages.VectorsReply: _vectors,
    messages.UpdateReply: _update,
    messages.GradientReply: _gradient,
    messages.StatisticsReply: _statistics,
    messages.EvaluateReply: _evaluate,
    messages.CompareReply: _compare,
}
