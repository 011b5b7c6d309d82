"""Builds a client's endpoint: layers for its privacy, its owner's policy and its ledger around the client.

================  ==============================================================
open sums         ``Client`` → ``Guard`` → ``Recorder``
secure sums       ``Client`` → ``Guard`` → ``SumRecorder`` → ``SecureClient`` → ``Recorder``
noisy sums        ``Client`` → ``DPClient`` → ``Guard`` → ``SumRecorder`` → ``SecureClient`` → ``Recorder``
================  ==============================================================

A layer calls only the next inner one. A :class:`~ifedicl.federation.handler.Disclosure` carries a reply and its facts outward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ifedicl.data import Example, read_texts
from ifedicl.federation.client import Client
from ifedicl.federation.handler import Discloser, Endpoint
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import Envelope
from ifedicl.federation.secure import named_missing_packages
from ifedicl.ledger.usage import CountedLedger, History
from ifedicl.owner.guard import Guard, GuardedClient, none_approved
from ifedicl.owner.policy import Policy, open_policy
from ifedicl.owner.recorder import Recorder, SumRecorder, Unrecorded, no_bytes
from ifedicl.settings import Method, PrivacySettings, RunSettings

_PUBLIC_TEXTS = 64
"""How many public texts are read: enough to estimate the size of each number's gradient."""


@dataclass(frozen=True)
class LedgerRecord:
    """The ledger of an owner, and a function from a message's size to the bytes that the engine adds."""

    ledger: CountedLedger
    overhead: Callable[[int], int] = no_bytes


@dataclass(frozen=True)
class Privacy:
    """A client's numbers leave in secure sums only, with noise if the rules ask for it.

    Attributes:
        rules: of each sum.
        method: the only settings that get noisy replies; None: there is no noise.
        run: digest of the run that the privacy budget belongs to.
        public: labelled texts, no client's own and the same at every client; the noise is scaled on them.
    """

    rules: PrivacySettings
    method: Method | None = None
    run: str = ""
    public: Sequence[Example] = ()


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
        client, inner, mask = _summing_client(client, history, privacy, peers)
        guard = Guard(inner, policy, history, approved=approved, masked=True)
        layer = mask(SumRecorder(guard, _noting(history) if record is None else record.ledger.append))
    if record is None:
        return ClientEndpoint(client, Unrecorded(layer, history), history)
    return ClientEndpoint(client, Recorder(layer, record.ledger, policy, record.overhead), history)


def _noting(history: History) -> Callable[[str, Mapping[str, Any]], None]:
    """Counts the lines that no ledger keeps."""
    return lambda _event, facts: history.note(facts)


def _summing_client(
    client: Client, history: History, privacy: Privacy, peers: Mapping[str, bytes]
) -> tuple[Client, GuardedClient, Callable[[Discloser], Discloser]]:
    """The client of secure sums; the same with its noise, if there is any; and what puts the masking layer around a layer."""
    rules = privacy.rules
    with named_missing_packages(rules):
        from ifedicl.federation.secure.sum_client import SecureClient, identity_of
    noise = None
    if rules.noise is not None and privacy.method is not None:
        with named_missing_packages(rules):  # a second of imports that sums without noise do not need
            from ifedicl.dp.skellam import Crowd
            from ifedicl.federation.dp_client import DPClient, DPSums
            from ifedicl.federation.secure.quantised import GRADIENT_STEP
        spent, public = history.spent(privacy.run).rounds, privacy.public[:_PUBLIC_TEXTS]
        crowd = Crowd(rules.min_survivors, rules.colluders)
        sums = DPSums(rules.noise, crowd, privacy.method, public, step=GRADIENT_STEP, spent_rounds=spent)
        noise = DPClient(client, sums, privacy.run)
        client = noise.client
    everyone = {**peers, client.name: identity_of(client).public}
    return client, noise or client, lambda layer: SecureClient(layer, client, everyone, rules, noise)


def simulated_endpoints(
    clients: Sequence[Client], manifest: Manifest, ledgers: Path | None, public: Sequence[Example]
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
        noisy = method if method.promises_noise else None
        privacy = Privacy(method.privacy, noisy, manifest.run, public)
        with named_missing_packages(method.privacy):
            from ifedicl.federation.secure.sum_client import identity_of
        # Each client pins the others' identities. Real owners exchange them without the coordinator.
        peers = {client.name: identity_of(client).public for client in clients}

    def record(name: str) -> LedgerRecord | None:
        return None if ledgers is None else LedgerRecord(CountedLedger(ledgers / f"{quote(name, safe=' ')}.jsonl", name))

    return tuple(build_endpoint(client, open_policy(), record(client.name), privacy, peers) for client in clients)


def spent_privacy(endpoints: Sequence[ClientEndpoint], manifest: Manifest) -> dict[str, Any]:
    """For an adapter's provenance: the largest ε of one example of any client, by what has left; empty without noise."""
    method = manifest.method
    if method.privacy is None or method.privacy.noise is None:
        return {}
    largest = max(endpoint.history.spent(manifest.run).epsilon for endpoint in endpoints)
    delta = method.privacy.noise.delta
    return {"privacy": {"epsilon": round(largest, 4), "delta": delta, "of": "one example of one client"}}


def public_examples(settings: RunSettings) -> tuple[Example, ...]:
    """Public texts, labelled with each label in turn. The true labels are unknown and do not matter."""
    if settings.data.public is None:
        return ()
    texts, labels = read_texts(settings.data.public, text=settings.data.text_column), settings.task.labels
    return tuple(Example(text, labels[position % len(labels)]) for position, text in enumerate(texts))
