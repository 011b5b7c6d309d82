"""Builds a client's endpoint: layers for its privacy, its owner's policy and its ledger around the client.

================  ==============================================================
open sums         ``Client`` → ``Guard`` → ``Recorder``
secure sums       ``Client`` → ``Guard`` → ``SumRecorder`` → ``SecureClient`` → ``Recorder``
noisy sums        the same; the client sums with :class:`~ifedicl.federation.dp_client.DPSums`
================  ==============================================================

A layer calls only the next inner one. A :class:`~ifedicl.federation.handler.Disclosure` carries a reply and its facts outward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ifedicl.data import read_texts
from ifedicl.federation.client import Client
from ifedicl.federation.client_task import ExampleSums
from ifedicl.federation.handler import Discloser, Endpoint
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import Envelope
from ifedicl.federation.public_text import PublicText
from ifedicl.federation.secure import named_missing_packages
from ifedicl.ledger.usage import CountedLedger, History
from ifedicl.owner.guard import Guard, none_approved
from ifedicl.owner.policy import Policy, open_policy
from ifedicl.owner.recorder import Recorder, SumRecorder, Unrecorded, no_bytes
from ifedicl.settings import PrivacySettings


@dataclass(frozen=True)
class LedgerRecord:
    """The ledger of an owner, and a function from a message's size to the bytes that the engine adds."""

    ledger: CountedLedger
    overhead: Callable[[int], int] = no_bytes


@dataclass(frozen=True)
class Privacy:
    """A client's numbers leave in secure sums only, with noise if the job promises it.

    Attributes:
        rules: of each sum.
        public: the same at every client; noise is scaled on it. None: a job with noise is refused.
    """

    rules: PrivacySettings
    public: PublicText | None = None


@dataclass(frozen=True)
class ClientEndpoint:
    """A client's endpoint, as an engine reaches it: the innermost and the outermost layer."""

    client: Client
    outermost: Endpoint = field(repr=False)
    history: History = field(repr=False)

    @property
    def name(self) -> str:
        return self.client.name

    def handle(self, envelope: Envelope, /) -> Envelope:
        return self.outermost.handle(envelope)


def build_endpoint(
    client: Client,
    policy: Policy,
    record: LedgerRecord | None,
    privacy: Privacy | None,
    peers: Mapping[str, bytes],
    *,
    approved: Callable[[], Collection[str]] = none_approved,
) -> ClientEndpoint:
    """Put the layers around a client.

    Args:
        client: the data owner.
        policy: what may leave, or go into a sum.
        record: of what leaves; None: no ledger, for simulations.
        privacy: None: replies leave as they are.
        peers: the identities of the other clients in secure sums, by name.
        approved: the digests of the jobs that the owner has approved.

    Raises:
        ConfigError: a package that the privacy needs is not installed, or the settings give no DP guarantee.
    """
    history = History() if record is None else record.ledger.history
    layer: Discloser
    if privacy is None:
        layer = Guard(client, policy, history, approved=approved)
    else:
        client, mask = _summing_client(client, history, privacy, peers)
        guard = Guard(client, policy, history, approved=approved, masked=True)
        layer = mask(SumRecorder(guard, _noting(history) if record is None else record.ledger.append))
    if record is None:
        return ClientEndpoint(client, Unrecorded(layer, history), history)
    return ClientEndpoint(client, Recorder(layer, record.ledger, policy, record.overhead), history)


def _noting(history: History) -> Callable[[str, Mapping[str, Any]], None]:
    """Counts the lines that no ledger keeps."""
    return lambda _event, facts: history.note(facts)


def _summing_client(
    client: Client, history: History, privacy: Privacy, peers: Mapping[str, bytes]
) -> tuple[Client, Callable[[Discloser], Discloser]]:
    """The client of secure sums, which can add noise if it has public text, and what puts the masking layer around a layer."""
    rules = privacy.rules
    with named_missing_packages(rules):
        from ifedicl.federation.secure.sum_client import SecureClient, identity_of
    if privacy.public is not None:
        client = client.with_sums(partial(_sums_of_job, privacy.public, client.dtype, history))
    own = identity_of(client).public
    # Simulated clients have one book of identities; a copy for each would take memory with the square of their number.
    everyone = peers if peers.get(client.name) == own else {**peers, client.name: own}
    return client, lambda layer: SecureClient(layer, client, everyone, rules, client)


def _sums_of_job(public: PublicText, dtype: str, history: History, manifest: Manifest, reference: PublicText) -> ExampleSums:
    """What sums a client's examples in a job. The budget counts what earlier tries of its run spent.

    Raises:
        ConfigError: the job promises noise and its settings, the dtype or the public texts give no DP guarantee.
    """
    privacy = manifest.method.privacy
    if privacy is None or not manifest.method.promises_noise:
        return ExampleSums(reference)
    with named_missing_packages(privacy):  # a second of imports that sums without noise do not need
        from ifedicl.federation.dp_client import DPSums
        from ifedicl.federation.secure.quantised import STEPS
    answered = {kind: history.noisy(manifest.run)[f"{kind}_reply"] for kind in STEPS}
    return DPSums(manifest, public, dtype=dtype, steps=STEPS, answered=answered)


def simulated_endpoints(
    clients: Sequence[Client], manifest: Manifest, ledgers: Path | None, public: Sequence[str]
) -> tuple[ClientEndpoint, ...]:
    """The endpoints of simulated clients, in the privacy mode of the method. Their policy allows everything.

    Args:
        clients: in order.
        manifest: of the run.
        ledgers: folder of the clients' ledgers, ``NAME.jsonl``; None: no ledger. The privacy budget counts the rounds that
            earlier tries of this run spent.
        public: texts that belong to no client; with noise, vectors come from them.

    Raises:
        ConfigError: a package that the mode needs is not installed, or the settings give no DP guarantee.
        StorageError: a ledger cannot be written, or was changed.
    """
    method, peers = manifest.method, dict[str, bytes]()
    privacy = None
    if method.privacy is not None and method.sums_only:
        privacy = Privacy(method.privacy, PublicText(public) if public else None)
        with named_missing_packages(method.privacy):
            from ifedicl.federation.secure.sum_client import identity_of
        # Each client pins the others' identities. Real owners exchange them without the coordinator.
        peers = {client.name: identity_of(client).public for client in clients}

    def record(name: str) -> LedgerRecord | None:
        return None if ledgers is None else LedgerRecord(CountedLedger(ledger_file(ledgers, name), name))

    policy = open_policy()
    return tuple(build_endpoint(client, policy, record(client.name), privacy, peers) for client in clients)


def ledger_file(ledgers: Path, name: str) -> Path:
    """The ledger of a simulated client in the folder of all ledgers."""
    return ledgers / f"{quote(name, safe=' ')}.jsonl"


def spent_privacy(endpoints: Sequence[ClientEndpoint], manifest: Manifest) -> dict[str, Any]:
    """For an adapter's provenance: the largest ε of one example of any client, by what has left; empty without noise."""
    method = manifest.method
    if method.privacy is None or method.privacy.noise is None:
        return {}
    largest = max(endpoint.history.spent(manifest.run).epsilon for endpoint in endpoints)
    delta = method.privacy.noise.delta
    return {"privacy": {"epsilon": round(largest, 4), "delta": delta, "of": "one example of one client"}}


def public_texts(file: str | None, column: str) -> tuple[str, ...]:
    """The texts of a file that belongs to no client; none without a file.

    Raises:
        DataError: it cannot be read, or has no column of this name.
    """
    return () if file is None else tuple(read_texts(file, text=column))
