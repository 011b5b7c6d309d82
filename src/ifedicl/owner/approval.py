"""Says in plain words what a job would get from an owner, so that the owner can approve it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import files
from ifedicl.backbone.load import shape_of
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.data import Example, Role, read_labelled, split_roles
from ifedicl.errors import BackboneError, ConfigError, DownloadError, Fault
from ifedicl.extract import groups_of
from ifedicl.federation.client import split_seed
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import Envelope, Reply
from ifedicl.federation.sample_exchange import Exchange, SampleCounts, sample_exchange
from ifedicl.federation.secure import named_missing_packages
from ifedicl.ledger.entries import Head
from ifedicl.ledger.ledger import read
from ifedicl.ledger.usage import History
from ifedicl.owner.own_files import split_key_of
from ifedicl.owner.policy import ClientSettings, Policy
from ifedicl.owner.rules import RefusalError, broken_rules, check_behind, check_request
from ifedicl.settings import load_settings
from ifedicl.settings.describe import mode_of, what_leaves

_HEAD = Head(100, "0" * 64)
_MANIFEST_SUFFIX = ".manifest.json"


@dataclass(frozen=True)
class OwnFacts:
    """What a verdict on a job needs of its owner.

    Attributes:
        examples: all of them.
        model: None: it cannot be read, and ``model_fault`` says why.
        history: what the ledger says has left.
    """

    settings: ClientSettings
    examples: tuple[Example, ...]
    model: ModelShape | None
    model_fault: str
    history: History

    @classmethod
    def of(cls, settings: ClientSettings) -> OwnFacts:
        """Read the owner's data and ledger, and its model's size.

        Raises:
            DataError: the data cannot be read.
            LedgerError: the ledger was changed.
        """
        data, ledger = settings.data, Path(settings.ledger.file)
        examples = read_labelled(data.file, text=data.text_column, label=data.label_column)
        history = History.of(read(ledger)[0]) if ledger.exists() else History()
        try:
            return cls(settings, examples, shape_of(settings.model), "", history)
        except (BackboneError, DownloadError) as error:
            return cls(settings, examples, None, str(error), history)

    def exchange(self, manifest: Manifest) -> dict[str, Exchange]:
        """A sample request and reply of each step of a job, with this owner's numbers of examples."""
        task, method = manifest.task, manifest.method
        usable = [example for example in self.examples if task.label_of(example.label) is not None]
        seed = split_seed(split_key_of(self.settings.ledger), method)
        roles = split_roles(usable, selection=method.holdout.selection, gate=method.holdout.gate, seed=seed)
        train, selection, gate = (roles[role] for role in Role)
        groups = groups_of([task.index(example.label) for example in train], method)
        counts = np.bincount(groups, minlength=method.groups(len(task.labels))).astype(np.int64)
        return sample_exchange(manifest, SampleCounts(counts, len(selection), len(gate)))


def load_manifest(path: Path, model: ModelShape | None) -> Manifest:
    """The manifest of a job: from its ``.manifest.json``, from a folder that ``ifedicl flare job`` wrote, or from a config.

    Args:
        path: the file or folder.
        model: the owner's, for a config, which names no fingerprint; None: unknown.

    Raises:
        ConfigError: it is none of these, or a setting is not allowed.
    """
    if path.is_dir():
        path = path.with_name(path.name + _MANIFEST_SUFFIX)
    if path.suffix == ".toml":
        run = load_settings(path)
        return Manifest.of(run.task, run.method, model or ModelShape("unknown", layers=1, width=1))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        remedy = f"Ask the coordinator for the file that `ifedicl flare job` writes beside the job: JOB{_MANIFEST_SUFFIX}."
        allowed = "a job's manifest, its folder beside it, or a config"
        raise ConfigError("job", [Fault("job", f"{path} ({error})", allowed, remedy)]) from error
    return Manifest.from_json(values, str(path))


def write_manifest(manifest: Manifest, job: Path) -> Path:
    """Write a job's manifest beside the job's folder, for :func:`load_manifest`, and return its path.

    Raises:
        StorageError: it cannot be written.
    """
    path = job.with_name(job.name + _MANIFEST_SUFFIX)
    files.write_json(path, manifest.to_json())
    return path


def explain(own: OwnFacts, manifest: Manifest) -> dict[str, Any]:
    """Facts as JSON: what the job asks, what would leave, how often, at most how many bytes and how much ε, and what it breaks.

    Raises:
        ConfigError: a package that the job's privacy mode needs is not installed.
    """
    task, method, limits = manifest.task, manifest.method, manifest.limits
    yours = own.model == manifest.model
    broken = [refusal.reason for refusal in broken_rules(own.settings.policy, manifest, own.history, approved=True)]
    if not yours:
        has = own.model_fault or (own.model.fingerprint if own.model else "")
        broken.append(f"model: the job's is {manifest.model.fingerprint}; [model] in client.toml is {has}")
    if method.sums_only != (own.settings.sums is not None):
        broken.append(
            f"[sums]: the job's mode is {'secure' if method.sums_only else 'open'}, and client.toml says the other one"
        )
    noise = None if method.privacy is None else method.privacy.noise
    steps = own.exchange(manifest)
    most_bytes = _most_bytes(own.settings, manifest, steps)
    return {
        "job": manifest.digest,
        "task": {
            "name": task.name,
            "template": task.template,
            "labels": list(task.labels),
            "label_words": list(task.label_words),
            "separator": task.separator,
            "turn": task.turn,
            "digest": task.digest,
        },
        "model": {"fingerprint": manifest.model.fingerprint, "yours": yours},
        "mode": mode_of(method),
        "would_leave": what_leaves(method),
        "at_most": limits.model_dump() | {"bytes_up": most_bytes, "epsilon": noise and noise.epsilon},
        "held_out": method.holdout.model_dump(),
        "refused_steps": _refused_steps(own.settings.policy, manifest, steps),
        "breaks": broken,
    }


def _refused_steps(policy: Policy, manifest: Manifest, steps: Mapping[str, Exchange]) -> dict[str, str]:
    """The steps of a job that the rules refuse in an approved job too, with the reasons; the run goes on without them."""
    refused = {}
    for name, (request, reply) in steps.items():
        try:
            check_request(policy, request)
            check_behind(policy, manifest, reply)
        except RefusalError as refusal:
            refused[name] = refusal.reason
    return refused


def _most_bytes(settings: ClientSettings, manifest: Manifest, steps: Mapping[str, Exchange]) -> int:
    """At most how many bytes the job's replies have, without the transport's own."""
    limits = manifest.limits
    sizes = {name: _reply_size(settings, manifest, exchange) for name, exchange in steps.items()}
    return (
        limits.updates * _largest(sizes, ("update", "gradient"))
        + limits.figures * _largest(sizes, ("evaluate", "readouts", "compare"))
        + limits.sums * _largest(sizes, ("vectors", "statistics"))
        + limits.contexts * (_largest(sizes, ("context",)) + sizes["job"])
    )


def _largest(sizes: Mapping[str, int], names: tuple[str, ...]) -> int:
    return max((sizes[name] for name in names if name in sizes), default=0)


def _reply_size(settings: ClientSettings, manifest: Manifest, exchange: Exchange) -> int:
    replies: list[Reply] = [exchange[1]]
    privacy = manifest.method.privacy
    if privacy is not None and manifest.method.sums_only:
        with named_missing_packages(privacy):
            from ifedicl.federation.secure.sample_sum import sample_sum
        clients = ["you", *(settings.sums.peers if settings.sums else ())]
        replies = sample_sum(*exchange, clients, manifest.method, most=True)[1]
    return sum(Envelope.of(reply, _HEAD).size for reply in replies)
