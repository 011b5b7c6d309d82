"""Predicts which replies a policy allows, from the owner's own counts. No model is loaded."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ifedicl.federation.expected_steps import expected_steps
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import Reply, StepRequest
from ifedicl.ledger.usage import History
from ifedicl.owner.approval import OwnFacts, own_sizes
from ifedicl.owner.own_files import approved_jobs
from ifedicl.owner.policy import Policy
from ifedicl.owner.rules import RefusalError, broken_rules, check_behind, check_job, check_limits, check_request

_NOT_ASKED = {"job", "context", "readouts"}
"""Steps without a verdict: replies to a job and a context are empty; the trial of readouts needs what evaluations and readout
sums need."""


def preview(own: OwnFacts, manifest: Manifest | None) -> dict[str, Any]:
    """Facts as JSON: the owner's data and model, the policy, the ledger, and the replies that a job would get.

    Args:
        own: the owner's data, model and ledger.
        manifest: of a job; None: no facts about a job.

    Raises:
        StorageError: the file of approved jobs cannot be read.
    """
    settings, examples = own.settings, own.examples
    labels = dict(Counter(example.stratum for example in examples).most_common())
    model = own.model.fingerprint if own.model else f"unknown: {own.model_fault}"
    facts: dict[str, Any] = {
        "data": {"file": settings.data.file, "examples": len(examples), "labels": labels},
        "model": {"source": settings.model.source, "fingerprint": model, "allowed": settings.allow.model(model)},
        "policy": settings.policy.model_dump(mode="json"),
        "sums": settings.sums and settings.sums.model_dump(mode="json"),
        "left_so_far": _ledger_facts(settings.ledger.file, own.history),
    }
    if manifest is None:
        return facts
    task = manifest.task
    approved = manifest.digest in approved_jobs(settings.ledger)
    return facts | {
        "task": {
            "name": task.name,
            "template": task.template,
            **task.facts,
            "digest": task.digest,
            "allowed": settings.allow.task(task.digest),
            "rows_with_other_labels": sum(not task.takes(example) for example in examples),
        },
        "job": {"digest": manifest.digest, "approved": approved, "limits": manifest.limits.model_dump()},
        "run": manifest.run,
        "breaks": [refusal.reason for refusal in broken_rules(settings.policy, manifest, own.history, approved=approved)],
        "would_leave": _would_leave(own, manifest, approved=approved),
    }


def _would_leave(own: OwnFacts, manifest: Manifest, *, approved: bool) -> dict[str, Any]:
    """By step: what leaves, how often and how many bytes, and whether the policy allows its reply."""
    policy = own.settings.policy
    try:
        check_job(policy, manifest, own.history, approved=approved)
    except RefusalError as refusal:
        return {"everything": _refused(refusal)}
    steps = own.exchange(manifest)
    expected = expected_steps(manifest, own_sizes(own.settings, manifest, steps))
    return {
        step.step: _verdict(policy, manifest, own.history, *steps[step.step])
        | {"what": step.what, "when": step.when, "times": step.times, "bytes": step.bytes_up}
        for step in expected
        if step.step not in _NOT_ASKED
    }


def _verdict(policy: Policy, manifest: Manifest, history: History, request: StepRequest, reply: Reply) -> dict[str, Any]:
    try:
        check_request(policy, request)
        check_limits(policy, manifest, request, history)
        check_behind(policy, manifest, reply)
    except RefusalError as refusal:
        return _refused(refusal)
    return {"leaves": True}


def _refused(refusal: RefusalError) -> dict[str, Any]:
    return {"leaves": False, "code": refusal.code.value, "why": refusal.reason}


def _ledger_facts(path: str, history: History) -> dict[str, Any]:
    """Rounds and bytes of each run in the ledger."""
    spent = {run: history.spent(run) for run in sorted(history.jobs)}
    return {"ledger": path, "jobs": {run: {"rounds": job.rounds, "bytes": job.bytes} for run, job in spent.items()}}
