"""Predicts which replies a policy allows, from the owner's own counts. No model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl.backbone.load import fingerprint
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.data import Example, Role, read_labelled, split_roles
from ifedicl.errors import BackboneError, DownloadError
from ifedicl.extract import groups_of
from ifedicl.federation.assignment import Assignment, run_digest
from ifedicl.federation.messages import Reply, Request
from ifedicl.federation.sample_exchange import SampleCounts, sample_exchange
from ifedicl.ledger.ledger import read
from ifedicl.ledger.usage import History, Spent
from ifedicl.owner.policy import ClientSettings, Policy
from ifedicl.owner.rules import RefusalError, check_assignment, check_behind, check_request
from ifedicl.settings import Method, RunSettings

_NOT_ASKED = {"context", "readouts"}
"""Steps without a verdict: a context reply is empty; the trial of readouts needs what evaluations and readout sums need."""


def preview(settings: ClientSettings, run: RunSettings | None) -> dict[str, Any]:
    """Facts as JSON: the owner's data and model, the policy, the ledger, and the replies that a run would get.

    Args:
        settings: the owner's.
        run: a coordinator's config; None: no facts about a run.

    Raises:
        DataError: the data cannot be read.
        LedgerError: the ledger was changed.
    """
    data = settings.data
    examples = read_labelled(data.file, text=data.text_column, label=data.label_column)
    model = _fingerprint(settings)
    labels = dict(Counter(example.label for example in examples).most_common())
    ledger = Path(settings.ledger.file)
    history = History.of(read(ledger)[0]) if ledger.exists() else History()
    facts: dict[str, Any] = {
        "data": {"file": data.file, "examples": len(examples), "labels": labels},
        "model": {"source": settings.model.source, "fingerprint": model, "allowed": settings.allow.model(model)},
        "policy": settings.policy.model_dump(mode="json"),
        "sums": settings.sums and settings.sums.model_dump(mode="json"),
        "left_so_far": _ledger_facts(ledger, history),
    }
    if run is None:
        return facts
    task = run.task
    usable = [example for example in examples if example.label in task.labels]
    return facts | {
        "task": {
            "name": task.name,
            "template": task.template,
            "labels": list(task.labels),
            "digest": task.digest,
            "allowed": settings.allow.task(task.digest),
            "rows_with_other_labels": len(examples) - len(usable),
        },
        "run": run_digest(task, run.method, model),
        "would_leave": _would_leave(settings.policy, history, run, model, usable),
    }


def _would_leave(policy: Policy, history: History, run: RunSettings, model: str, examples: Sequence[Example]) -> dict[str, Any]:
    """By step, whether the policy allows its reply."""
    task, method = run.task, run.method
    try:
        check_assignment(policy, task, method, model)
    except RefusalError as refusal:
        return {"everything": _refused(refusal)}
    roles = split_roles(examples, selection=method.holdout.selection, gate=method.holdout.gate, seed=method.seed)
    train, selection, gate = (roles[role] for role in Role)
    groups = groups_of([task.index(example.label) for example in train], method)
    counts = np.bincount(groups, minlength=method.groups(len(task.labels))).astype(np.int64)
    # The rules count examples. The size of the model makes no difference.
    assignment = Assignment(task, method, ModelShape(model, layers=1, width=1))
    steps = sample_exchange(assignment, SampleCounts(counts, len(selection), len(gate)))
    spent = history.spent(assignment.digest)
    return {name: _verdict(policy, method, spent, *step) for name, step in steps.items() if name not in _NOT_ASKED}


def _verdict(policy: Policy, method: Method, spent: Spent, request: Request, reply: Reply) -> dict[str, Any]:
    try:
        check_request(policy, request, spent)
        check_behind(policy, method, reply)
    except RefusalError as refusal:
        return _refused(refusal)
    return {"leaves": True}


def _refused(refusal: RefusalError) -> dict[str, Any]:
    return {"leaves": False, "code": refusal.code.value, "why": refusal.reason}


def _fingerprint(settings: ClientSettings) -> str:
    try:
        return fingerprint(settings.model)
    except (BackboneError, DownloadError) as error:
        return f"unknown: {error}"


def _ledger_facts(path: Path, history: History) -> dict[str, Any]:
    """Rounds and bytes of each job in the ledger."""
    spent = {run: history.spent(run) for run in sorted(history.jobs)}
    return {"ledger": str(path), "jobs": {run: {"rounds": job.rounds, "bytes": job.bytes} for run, job in spent.items()}}
