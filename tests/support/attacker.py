"""A coordinator that lies, and owners with the default rules whom it attacks.

Each attack is tried twice: against owners without the defence, where it must work, and against owners as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl.backbone.load import Backbone
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import WRITES
from ifedicl.federation.client import Client
from ifedicl.federation.client_keys import key_for
from ifedicl.federation.handler import Endpoint
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages import Envelope, Failure, FailureCode, JobRequest, Reply, Request
from ifedicl.flare.byte_endpoint import answer
from ifedicl.kinds.classify import Example
from ifedicl.ledger.entries import Head
from ifedicl.ledger.usage import CountedLedger
from ifedicl.owner.endpoint import LedgerRecord, Privacy, build_endpoint
from ifedicl.owner.policy import ANY, Policy
from ifedicl.settings import Method, PrivacySettings, validated
from tests.support import tiny
from tests.support.jobs import context_of, job_of

EXAMPLES = 40
TRAINED = tiny.method(calibration={"batch_size": 4, "local_steps": 4}, rounds={"rounds": 3})
"""A job that the default rules allow."""


def default_rules(**sections: Any) -> Policy:
    """The default policy of an owner whose rules allow every task and model; sections override."""
    sections["allow"] = {"tasks": (ANY,), "models": (ANY,), **sections.get("allow", {})}
    return validated(Policy, sections, "test")


class Overheard:
    """A client's end as a lying coordinator reaches it, over the bytes that FLARE carries or within the process."""

    def __init__(self, endpoint: Endpoint, *, over_flare: bool = False) -> None:
        self.endpoint = endpoint
        self.name = endpoint.name
        self.over_flare = over_flare
        self.head: Head | None = None

    def handle(self, request: Request, *, states_head: bool = True) -> Reply:
        """The reply to one request, which states the last head that came."""
        head = self.head if states_head and request.carries_head else None
        return self.send(Envelope.of(request, head).to_bytes())

    def send(self, wire: bytes) -> Reply:
        """The reply to any bytes."""
        if self.over_flare:
            up = Envelope.from_bytes(answer(self.endpoint, wire))
        else:
            up = Envelope.from_bytes(self.endpoint.handle(Envelope.from_bytes(wire)).to_bytes())
        self.head = up.head or self.head
        return up.frame.reply

    def begin(self, manifest: Manifest, context: Context | None = None) -> Reply:
        """Bring a job and its global vectors; the first failure, or the last reply."""
        reply = self.handle(JobRequest(manifest))
        if isinstance(reply, Failure):
            return reply
        return self.handle(context_of(manifest, context or ones(manifest)))


def ones(manifest: Manifest, rank: int = 0) -> Context:
    """Global vectors of ones, with a basis of the first ``rank`` coordinates."""
    layers, width = len(manifest.layers), manifest.model.width
    basis = np.tile(np.eye(rank, width, dtype=np.float32), (layers, len(WRITES), 1, 1)) if rank else None
    return Context(np.ones((layers, len(WRITES), width), dtype=np.float32), basis, manifest.layers.start)


def place_of(manifest: Manifest, rank: int = 0) -> str:
    """The name of these vectors in this job."""
    return context_id(manifest.digest, ones(manifest, rank))


def owner(
    backbone: Backbone,
    folder: Path,
    *,
    name: str = "clinic",
    examples: Sequence[Example] = (),
    policy: Policy | None = None,
    sums: PrivacySettings | None = None,
    peers: dict[str, bytes] | None = None,
    over_flare: bool = False,
    **options: Any,
) -> Overheard:
    """An owner of real examples with the default rules and a ledger; with ``sums`` it sends masked numbers only."""
    secret = name.encode().ljust(32)
    rows = tuple(examples) or tiny.examples(EXAMPLES)
    client = Client(name, rows, backbone, secret=secret, split_key=key_for(secret, "split"), **options)
    record = LedgerRecord(CountedLedger(folder / f"{name}.jsonl", name))
    privacy = None if sums is None else Privacy(sums)
    endpoint = build_endpoint(client, policy or default_rules(), record, privacy, peers or {})
    return Overheard(endpoint, over_flare=over_flare)


def client_behind(owner: Overheard) -> Client:
    """The innermost layer of an owner's end."""
    client: Client = owner.endpoint.client  # type: ignore[attr-defined]
    return client


def job(backbone: Backbone, method: Method = TRAINED) -> Manifest:
    """The manifest of a job on this model."""
    return job_of(method, backbone)


def unchecked(method: Method, **calibration: Any) -> Method:
    """The method with settings that no validation has seen."""
    section = type(method.calibration).model_construct(**{**method.calibration.model_dump(), **calibration})
    return method.model_copy(update={"calibration": section})


def flat(coefficients: Coefficients) -> Any:
    """All numbers in one row, float64."""
    return np.concatenate([array.ravel().astype(np.float64) for array in coefficients.arrays.values()])


def cosine(one: Any, other: Any) -> float:
    """The cosine between two rows of numbers."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def code(reply: Reply) -> FailureCode | None:
    """The code of a failure; None for any other reply."""
    return reply.code if isinstance(reply, Failure) else None
