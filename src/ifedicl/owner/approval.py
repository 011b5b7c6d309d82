"""Says in plain words what a job would get from an owner, so that the owner can approve it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import files
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.backbone.source import shape_of
from ifedicl.data import Role, read_labelled, split_roles
from ifedicl.errors import BackboneError, ConfigError, DownloadError, Fault
from ifedicl.federation.client_keys import split_seed
from ifedicl.federation.expected_steps import step_sizes
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.sample_exchange import Exchange, SampleCounts, sample_exchange
from ifedicl.kinds import KINDS
from ifedicl.kinds.examples import AnyExample
from ifedicl.ledger.ledger import read
from ifedicl.ledger.usage import History
from ifedicl.owner.own_files import split_key_of
from ifedicl.owner.policy import ClientSettings, Policy
from ifedicl.owner.rules import RefusalError, broken_rules, check_behind, check_request
from ifedicl.settings import RunSettings, load_settings
from ifedicl.settings.describe import mode_of, what_leaves

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
    examples: tuple[AnyExample, ...]
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
        examples = read_labelled(data.file, kind=KINDS[data.kind], text=data.text_column, label=data.label_column)
        history = History.of(read(ledger)[0]) if ledger.exists() else History()
        try:
            return cls(settings, examples, shape_of(settings.model), "", history)
        except (BackboneError, DownloadError) as error:
            return cls(settings, examples, None, str(error), history)

    def exchange(self, manifest: Manifest) -> dict[str, Exchange]:
        """A sample request and reply of each step of a job, with this owner's numbers of examples."""
        task, method = manifest.task, manifest.method
        usable = [example for example in self.examples if task.takes(example)]
        seed = split_seed(split_key_of(self.settings.ledger), method)
        roles = split_roles(usable, selection=method.holdout.selection, gate=method.holdout.gate, seed=seed)
        train, selection, gate = (roles[role] for role in Role)
        groups = [method.group_of(task.class_of(example)) for example in train]
        counts = np.bincount(np.asarray(groups, dtype=np.int64), minlength=method.groups(task.classes)).astype(np.int64)
        return sample_exchange(manifest, SampleCounts(counts, len(selection), len(gate)))


def read_job(path: Path) -> Manifest | RunSettings:
    """A job's ``.manifest.json``, that of a folder which ``ifedicl flare job`` wrote, or a config. No model is looked at.

    Raises:
        ConfigError: it is none of these, or a setting is not allowed.
    """
    if path.is_dir():
        path = path.with_name(path.name + _MANIFEST_SUFFIX)
    if path.suffix == ".toml":
        return load_settings(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        remedy = f"Ask the coordinator for the file that `ifedicl flare job` writes beside the job: JOB{_MANIFEST_SUFFIX}."
        allowed = "a job's manifest, its folder beside it, or a config"
        raise ConfigError("job", [Fault("job", f"{path} ({error})", allowed, remedy)]) from error
    return Manifest.from_json(values, str(path))


def manifest_of(job: Manifest | RunSettings, model: ModelShape | None) -> Manifest:
    """The manifest of what :func:`read_job` read.

    Args:
        job: a manifest or a config.
        model: the owner's, for a config, which names no fingerprint; None: unknown.
    """
    if isinstance(job, Manifest):
        return job
    return Manifest.of(job.task, job.method, model or ModelShape("unknown", layers=1, width=1))


def write_manifest(manifest: Manifest, job: Path) -> Path:
    """Write a job's manifest beside the job's folder, for :func:`read_job`, and return its path.

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
            **task.facts,
            "asks": task.asks,
            "separator": task.separator,
            "turn": task.turn,
            "digest": task.digest,
        },
        "model": {"fingerprint": manifest.model.fingerprint, "yours": yours},
        "mode": mode_of(method),
        "would_leave": what_leaves(method, type(task)),
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
    sizes = {name: up for name, (_, up) in own_sizes(settings, manifest, steps).items()}
    return (
        limits.updates * _largest(sizes, ("update", "gradient"))
        + limits.figures * _largest(sizes, ("evaluate", "readouts", "compare"))
        + limits.sums * _largest(sizes, ("vectors", "statistics", "products"))
        + limits.contexts * (_largest(sizes, ("context",)) + sizes["job"])
    )


def own_sizes(settings: ClientSettings, manifest: Manifest, steps: Mapping[str, Exchange]) -> dict[str, tuple[int, int]]:
    """Bytes of request and reply of each step, with the owner's peers in a secure sum."""
    return step_sizes(manifest, steps, ["you", *(settings.sums.peers if settings.sums else ())], most=True)


def _largest(sizes: Mapping[str, int], names: tuple[str, ...]) -> int:
    return max((sizes[name] for name in names if name in sizes), default=0)
