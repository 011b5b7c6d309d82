"""Simulated clients in secure mode: each pins the identities of all others, as owners would over another channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from ifedicl.federation.client import Client
from ifedicl.federation.engine import Door, Engine
from ifedicl.federation.messages import Reply, Request
from ifedicl.federation.secure.client import SecureClient, identity_of
from ifedicl.federation.secure.engine import SecureEngine
from ifedicl.settings import PrivacySettings

Masking: TypeAlias = Callable[[Callable[[Request], Reply]], Door]
"""Makes the door that masks, of whoever answers its plain requests."""


def _unguarded(client: Client, masking: Masking) -> Door:
    return masking(client.handle)


def secured(
    engine: Callable[[Sequence[Door]], Engine],
    clients: Sequence[Client],
    rules: PrivacySettings,
    owned: Callable[[Client, Masking], Door] = _unguarded,
) -> Engine:
    """An engine over clients that take part in sums only.

    Args:
        engine: carries the messages.
        clients: in order.
        rules: of the sums; every client asks for the same.
        owned: puts an owner's policy and ledger around the door that masks.
    """
    pins = {client.name: identity_of(client).public for client in clients}
    doors = [owned(client, partial(SecureClient, client, pins, rules)) for client in clients]
    return SecureEngine(engine(doors), rules)
