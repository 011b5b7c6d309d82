"""The rules of a policy: for a job, for each of its requests, and for the reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ifedicl.federation import messages
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import FailureCode, Reply, Request
from ifedicl.ledger.usage import History
from ifedicl.owner.policy import LeastSettings, Policy


class RefusalError(Exception):
    """The policy does not allow a reply: a code for the coordinator, a reason for the owner's own log.

    The reason holds numbers and settings, never text.
    """

    def __init__(self, reason: str, code: FailureCode = FailureCode.REFUSED) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def broken_rules(policy: Policy, manifest: Manifest, history: History, *, approved: bool) -> list[RefusalError]:
    """The rules that a job breaks; none: its requests are answered.

    Args:
        policy: the owner's.
        manifest: of the job.
        history: of what has left.
        approved: whether the owner approved this job, which takes the place of ``allow.tasks`` and ``allow.models``.
    """
    allow, least, most, work = policy.allow, policy.least, policy.most, policy.work
    task, method, limits = manifest.task, manifest.method, manifest.limits
    calibration, fingerprint = method.calibration, manifest.model.fingerprint
    broken = {
        f"allow.tasks does not list task {task.digest}": not (approved or allow.task(task.digest)),
        f"allow.models does not list model {fingerprint}": not (approved or allow.model(fingerprint)),
        "allow.class_counts is false; vectors by class reveal how many examples each class has": (
            method.classes_apart and not allow.class_counts
        ),
        "allow.gradient_sums is false": method.takes_gradients and not allow.gradient_sums,
        f"least.step is {least.step}; a step of this job mixes {calibration.batch_size} examples": (
            method.takes_updates and calibration.batch_size < least.step
        ),
        f"work.steps is {work.steps}; an update of this job takes {calibration.local_steps} steps": (
            method.takes_updates and calibration.local_steps > work.steps
        ),
        f"most.epsilon is {most.epsilon:g}; this job has no DP guarantee": most.epsilon > 0 and not method.promises_noise,
        f"most.delta is {most.delta:g}; this job's δ is larger": most.epsilon > 0 and method.delta > most.delta,
    }
    for name in ("rounds", "figures", "sums", "contexts"):
        allowed, asked = getattr(most, name), getattr(limits, name)
        broken[f"most.{name} is {allowed}; this job asks for {asked}"] = 0 < allowed < asked
    held = history.holdout(manifest.question)
    if held is not None and not allow.new_splits:
        now, before = (method.holdout.selection, method.holdout.gate), (held.selection, held.gate)
        broken[
            f"allow.new_splits is false; holdout.selection and gate are {now}, earlier jobs with this model had "
            f"{before}. The difference of two figures can be one example's label"
        ] = now != before
    refusals = [RefusalError(reason) for reason, applies in broken.items() if applies]
    others = history.jobs - {manifest.run}
    if 0 < most.jobs <= len(others):
        reason = f"most.jobs is {most.jobs}; {len(others)} other runs got replies"
        refusals.append(RefusalError(reason, FailureCode.SPENT))
    return refusals


def check_job(policy: Policy, manifest: Manifest, history: History, *, approved: bool) -> None:
    """Check a job before the client takes it.

    Raises:
        RefusalError: the first rule that it breaks.
    """
    if broken := broken_rules(policy, manifest, history, approved=approved):
        raise broken[0]


def check_mode(manifest: Manifest, *, masked: bool) -> None:
    """Check that the job's privacy mode is this client's.

    Raises:
        RefusalError: the job promises secure sums and this client sends open replies, or the other way round.
    """
    if manifest.method.sums_only != masked:
        mode, own = ("secure", "open") if manifest.method.sums_only else ("open", "secure")
        raise RefusalError(f"the job's mode is {mode}; this client's is {own} ([sums])", FailureCode.OTHER_MODE)


def check_request(policy: Policy, request: Request) -> None:
    """Check that this kind of reply may leave.

    Raises:
        RefusalError: the policy does not allow it.
    """
    allow = policy.allow
    has_readout = isinstance(request, messages.EvaluateRequest | messages.CompareRequest) and bool(request.readouts)
    forbidden = {
        "allow.readout_sums or allow.class_counts is false; readout sums reveal products of hidden states and class counts": (
            isinstance(request, messages.StatisticsRequest | messages.NoisyStatisticsRequest | messages.ProductsRequest)
            and not (allow.readout_sums and allow.class_counts)
        ),
        "allow.readout_sums or allow.class_counts is false; a readout can be built to count labels or to weigh hidden states": (
            has_readout and not (allow.readout_sums and allow.class_counts)
        ),
        "allow.class_counts is false; gate figures reveal how many examples each label has": (
            isinstance(request, messages.CompareRequest) and not allow.class_counts
        ),
    }
    for reason, applies in forbidden.items():
        if applies:
            raise RefusalError(reason)


def check_limits(policy: Policy, manifest: Manifest, request: Request, history: History) -> None:
    """Check that the job and the policy have replies of this kind left. The caller knows that the request is new.

    Raises:
        RefusalError: a limit is reached.
    """
    kind = _COUNTS.get(type(request))
    if kind is None:
        return
    spent, total = getattr(history.spent(manifest.run), kind), getattr(history.total, kind)
    of_job = "updates" if kind == "rounds" else kind
    limits = {
        f"the job's limit of {of_job}": (getattr(manifest.limits, of_job), spent),
        f"most.{kind}": (getattr(policy.most, kind) or None, spent),
        f"most.total_{kind}": (getattr(policy.most, f"total_{kind}", 0) or None, total),
    }
    for name, (limit, left) in limits.items():
        if limit is not None and left >= limit:
            raise RefusalError(f"{name} is {limit}; {left} have left", FailureCode.SPENT)


def check_enough(policy: Policy, manifest: Manifest, request: Request, examples: int) -> None:
    """Check that a client has enough examples for a request, before anything is computed.

    Args:
        policy: the owner's.
        manifest: of the job.
        request: of it.
        examples: the client's, of the role that the request is about.

    Raises:
        RefusalError: there are too few.
    """
    if not examples or manifest.method.promises_noise:
        return  # the client says so itself, and computes nothing; with noise a code would tell the number of examples
    least = policy.least
    if isinstance(request, messages.UpdateRequest):
        _require_steps(examples, least, manifest)
    elif isinstance(request, messages.EvaluateRequest | messages.CompareRequest):
        _require(examples, least.held_out, "held-out examples", "held_out")
    elif isinstance(request, messages.StatisticsRequest | messages.NoisyStatisticsRequest | messages.ProductsRequest) or (
        isinstance(request, messages.VectorsRequest) and not request.cursor and not manifest.method.promises_noise
    ):
        _require(examples, least.examples, "training examples", "examples")


def check_behind(policy: Policy, manifest: Manifest, reply: Reply) -> None:
    """Check that enough examples stand behind a reply.

    Raises:
        RefusalError: there are too few.
    """
    rule = _BEHIND.get(type(reply))
    if rule is not None and not manifest.method.promises_noise:
        rule(reply, policy.least, manifest)


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


def check_new_figures(policy: Policy, new: int) -> None:
    """Check that enough held-out examples were added since an earlier figure.

    Raises:
        RefusalError: there are too few.
    """
    _require(new, policy.least.held_out, "new held-out examples", "held_out")


def check_epsilon(policy: Policy, of_this_run: float | None, of_others: float) -> None:
    """Check the ε of all runs together.

    Raises:
        RefusalError: it exceeds the policy's limit, or this run has no DP guarantee.
    """
    most = policy.most.epsilon
    if not most:
        return
    if of_this_run is None:
        raise RefusalError(f"most.epsilon is {most:g}; this job has no DP guarantee")
    if (total := of_this_run + of_others) > most:
        raise RefusalError(f"most.epsilon is {most:g}; all jobs together would spend ε = {total:.2f}", FailureCode.SPENT)


def _vectors(reply: messages.VectorsReply, least: LeastSettings, _manifest: Manifest) -> None:
    # For added examples alone, least.new_examples applies.
    if reply.replaces:
        _require(reply.vectors.examples, least.examples, "training examples", "examples")
    groups = reply.vectors.counts[reply.vectors.counts > 0]
    if len(reply.vectors.counts) > 1 and len(groups):
        _require(int(groups.min()), least.group, "examples in the smallest class", "group")


def _update(reply: messages.UpdateReply, least: LeastSettings, manifest: Manifest) -> None:
    _require_steps(reply.examples, least, manifest)


def _gradient(reply: messages.GradientReply, least: LeastSettings, _manifest: Manifest) -> None:
    if least.examples > 1:  # without a check, an empty sum may leave too
        _require(reply.sums.examples, least.examples, "examples in a gradient sum", "examples")


def _statistics(reply: messages.StatisticsReply | messages.ProductsReply, least: LeastSettings, _manifest: Manifest) -> None:
    _require(reply.sums.examples, least.examples, "training examples", "examples")


def _evaluate(reply: messages.EvaluateReply, least: LeastSettings, _manifest: Manifest) -> None:
    _require(min(tally.examples for tally in reply.tallies), least.held_out, "held-out examples", "held_out")


def _compare(reply: messages.CompareReply, least: LeastSettings, _manifest: Manifest) -> None:
    _require(reply.comparison.adapter.examples, least.held_out, "gate examples", "held_out")


def _require_steps(examples: int, least: LeastSettings, manifest: Manifest) -> None:
    """An update of a client with this number of examples: :func:`ifedicl.calibrate.batches_of` takes none twice."""
    calibration = manifest.method.calibration
    in_a_step = min(examples, calibration.batch_size)
    _require(in_a_step, least.step, "examples in a step of an update", "step")
    trained = min(examples, calibration.batch_size * calibration.local_steps)
    _require(trained, least.examples, "examples in an update", "examples")


def _require(count: int, least: int, what: str, field: str) -> None:
    if count < least:
        raise RefusalError(f"least.{field} is {least}; received {count} {what}", FailureCode.TOO_FEW)


_COUNTS: Mapping[type[Request], str] = {
    messages.UpdateRequest: "rounds",
    messages.GradientRequest: "rounds",
    messages.EvaluateRequest: "figures",
    messages.CompareRequest: "figures",
    messages.VectorsRequest: "sums",
    messages.StatisticsRequest: "sums",
    messages.NoisyStatisticsRequest: "sums",
    messages.ProductsRequest: "sums",
    messages.ContextRequest: "contexts",
}
"""The limit that a kind of request counts against."""
_BEHIND: Mapping[type[Reply], Callable[[Any, LeastSettings, Manifest], None]] = {
    messages.VectorsReply: _vectors,
    messages.UpdateReply: _update,
    messages.GradientReply: _gradient,
    messages.StatisticsReply: _statistics,
    messages.ProductsReply: _statistics,
    messages.EvaluateReply: _evaluate,
    messages.CompareReply: _compare,
}
