"""What a policy would let out, told from the owner's own counts before anyone has asked. No model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl.backbone.load import fingerprint
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.readout import ReadoutSums
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Example, Role, read_labelled, split_roles
from ifedicl.errors import BackboneError, DownloadError
from ifedicl.extract import groups_of
from ifedicl.federation.assignment import run_digest
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    EvaluateReply,
    EvaluateRequest,
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
from ifedicl.ledger.ledger import read
from ifedicl.ledger.usage import History
from ifedicl.metrics import Comparison, Tally
from ifedicl.owner.policy import ClientSettings
from ifedicl.owner.rules import RefusalError, check_assignment, check_behind, check_request
from ifedicl.settings import Method, RunSettings

_SMALL = Coefficients.identity(Form(1))
"""A policy asks how many examples stand behind a message, not how wide the model is."""


def preview(settings: ClientSettings, run: RunSettings | None) -> dict[str, Any]:
    """Facts as JSON: the owner's data and model, what is allowed, and what a run would get.

    Args:
        settings: the owner's.
        run: a coordinator's config; None: no such part.

    Raises:
        DataError: the data cannot be read.
        LedgerError: the ledger was changed.
    """
    data = settings.data
    examples = read_labelled(data.file, text=data.text_column, label=data.label_column)
    model = _fingerprint(settings)
    facts: dict[str, Any] = {
        "data": {
            "file": data.file,
            "examples": len(examples),
            "labels": dict(Counter(example.label for example in examples).most_common()),
        },
        "model": {"source": settings.model.source, "fingerprint": model, "allowed": settings.allow.model(model)},
        "policy": settings.policy.model_dump(mode="json"),
        "sums": settings.sums and settings.sums.model_dump(mode="json"),
        "left_so_far": _left(Path(settings.ledger.file)),
    }
    if run is None:
        return facts
    task = run.task
    unknown = sum(example.label not in task.labels for example in examples)
    held = [example for example in examples if example.label in task.labels]
    return facts | {
        "task": {
            "name": task.name,
            "template": task.template,
            "labels": list(task.labels),
            "digest": task.digest,
            "allowed": settings.allow.task(task.digest),
            "rows_with_other_labels": unknown,
        },
        "run": run_digest(task, run.method, model),
        "would_leave": _would_leave(settings, run, model, held),
    }


def _would_leave(
    settings: ClientSettings, run: RunSettings, model: str, examples: Sequence[Example]
) -> dict[str, dict[str, Any]]:
    try:
        check_assignment(settings.policy, run.task, run.method, model)
    except RefusalError as refusal:
        return {"everything": {"leaves": False, "code": refusal.code.value, "why": refusal.reason}}
    return {name: _verdict(settings, run, model, *messages) for name, messages in _messages(run, examples).items()}


def _verdict(settings: ClientSettings, run: RunSettings, model: str, request: Request | None, reply: Reply) -> dict[str, Any]:
    spent = _history(Path(settings.ledger.file)).spent(run_digest(run.task, run.method, model))
    try:
        if request is not None:
            check_request(settings.policy, request, spent)
        check_behind(settings.policy, run.method, reply)
    except RefusalError as refusal:
        return {"leaves": False, "code": refusal.code.value, "why": refusal.reason}
    return {"leaves": True}


def _messages(run: RunSettings, examples: Sequence[Example]) -> dict[str, tuple[Request | None, Reply]]:
    """One of each kind that the run asks for, of as many examples as the owner's would be of, and of no model's width."""
    method = run.method
    roles = split_roles(examples, selection=method.holdout.selection, gate=method.holdout.gate, seed=method.seed)
    train, selection, gate = (roles[role] for role in Role)
    messages: dict[str, tuple[Request | None, Reply]] = {"vectors": (None, _vectors(run, train))}
    if method.takes_gradients:
        assert method.server is not None
        drawn = round(method.server.draw * len(train))
        messages["gradient"] = GradientRequest("", 0, _SMALL), GradientReply(GradientSum(_SMALL.arrays, drawn, 0.0))
    else:
        messages["update"] = UpdateRequest("", 0, 0, 1, _SMALL), UpdateReply(_SMALL, len(train), 0.0)
    if method.holdout.selection:
        messages["evaluate"] = EvaluateRequest("", Role.SELECTION, _SMALL), EvaluateReply((Tally(len(selection)),))
    if method.holdout.gate:
        messages["compare"] = CompareRequest("", _SMALL, None), CompareReply(Comparison(Tally(len(gate)), Tally(len(gate))))
    if method.readout is not None:
        sums = ReadoutSums(np.eye(1), np.ones((1, len(run.task.labels))), len(train))
        messages["statistics"] = StatisticsRequest("", _SMALL), StatisticsReply(sums)
    return messages


def _vectors(run: RunSettings, train: Sequence[Example]) -> VectorsReply:
    method: Method = run.method
    labels = [run.task.index(example.label) for example in train]
    groups = groups_of(labels, method)
    counts = np.bincount(groups, minlength=method.groups(len(run.task.labels))).astype(np.int64)
    means = np.zeros((len(counts), 1, 2, 1), dtype=np.float32)
    return VectorsReply(ContextVectors(means, counts), "", True, "", method.vectors.wire_dtype)


def _fingerprint(settings: ClientSettings) -> str:
    try:
        return fingerprint(settings.model)
    except (BackboneError, DownloadError) as error:
        return f"not known: {error}"


def _history(path: Path) -> History:
    return History.of(read(path)[0]) if path.exists() else History()


def _left(path: Path) -> dict[str, Any]:
    history = _history(path)
    return {
        "ledger": str(path),
        "jobs": {run: {"rounds": history.spent(run).rounds, "bytes": history.spent(run).bytes} for run in sorted(history.jobs)},
    }
