"""Simulated clients in secure mode: each pins the identities of all others, as owners would over another channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ifedicl.federation.client import Client
from ifedicl.federation.engine import Door, Engine
from ifedicl.federation.secure.client import SecureClient, identity_of
from ifedicl.federation.secure.engine import SecureEngine
from ifedicl.settings import PrivacySettings


def secured(
    engine: Callable[[Sequence[Door]], Engine], clients: Sequence[Client], doors: Sequence[Door], rules: PrivacySettings
) -> Engine:
    """An engine over clients that take part in sums only.

    Args:
        engine: carries the messages.
        clients: in order.
        doors: what stands before each of them and answers plain requests: the client itself, or its owner's policy and ledger.
        rules: of the sums; every client asks for the same.
    """
    pins = {client.name: identity_of(client).public for client in clients}
    secure = [SecureClient(client, pins, rules, door=own.handle) for client, own in zip(clients, doors, strict=True)]
    return SecureEngine(engine(secure), rules)
