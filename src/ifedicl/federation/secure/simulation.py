"""Simulated clients in secure mode: each pins the identities of all others, as owners would over another channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ifedicl.federation.client import Client
from ifedicl.federation.engine import Door
from ifedicl.federation.secure import Masking
from ifedicl.federation.secure.client import SecureClient, identity_of
from ifedicl.settings import PrivacySettings


def masked(clients: Sequence[Client], rules: PrivacySettings, owned: Callable[[Client, Masking], Door]) -> list[Door]:
    """Doors of clients that take part in sums only.

    Args:
        clients: in order.
        rules: of the sums; every client asks for the same.
        owned: puts an owner's policy and ledger around the door that masks, or nothing.
    """
    pins = {client.name: identity_of(client).public for client in clients}
    return [owned(client, partial(SecureClient, client, pins, rules)) for client in clients]
