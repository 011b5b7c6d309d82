"""Clients' ends for tests: without an owner's policy around the client, or asked by requests in place of envelopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ifedicl.federation.handler import Discloser, Disclosure, Endpoint, Replier
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import Envelope, Reply, Request
from ifedicl.federation.secure.sum_client import NoiseSource, SecureClient
from ifedicl.ledger.entries import Head
from ifedicl.ledger.usage import History
from ifedicl.owner.recorder import Unrecorded
from ifedicl.settings import PrivacySettings


class Unguarded:
    """A client whose replies are disclosed as they are: nobody's policy looks at them."""

    def __init__(self, client: Replier) -> None:
        self.client = client
        self.name = client.name

    def handle(self, request: Request, /) -> Disclosure:
        """The client's reply, disclosed."""
        return Disclosure(self.client.handle(request))


def bare(client: Any) -> Unrecorded:
    """A client's end without policy and ledger."""
    return Unrecorded(Unguarded(client), History())


def engine_of(clients: Sequence[Any]) -> LocalEngine:
    """A local engine over clients that no policy or ledger stands before."""
    return LocalEngine([bare(client) for client in clients])


def engine_over(layers: Sequence[Discloser]) -> LocalEngine:
    """A local engine over layers that disclose, such as secure ones."""
    return LocalEngine([Unrecorded(layer, History()) for layer in layers])


def secure_layer(
    client: Any,
    peers: Mapping[str, bytes],
    rules: PrivacySettings,
    inner: Replier | None = None,
    noise: NoiseSource | None = None,
) -> SecureClient:
    """A client's secure layer, without a policy."""
    return SecureClient(Unguarded(inner or client), client, peers, rules, noise)


class Asked:
    """A client's end that is asked by requests in place of envelopes, as a coordinator that states the head it knows.

    The envelope of the last reply is kept.
    """

    last: Envelope
    known: Head | None = None

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.name = endpoint.name

    def handle(self, request: Request, head: Head | None = None) -> Reply:
        """The reply to a request that states ``head``, or else the last one that came."""
        return self.ask(request, head).frame.reply

    def ask(self, request: Request, head: Head | None = None) -> Envelope:
        """The envelope of the reply."""
        stated = (head or self.known) if request.carries_head else None
        self.last = Envelope.from_bytes(self.endpoint.handle(Envelope.of(request, stated)).to_bytes())
        self.known = self.last.head or self.known
        return self.last
