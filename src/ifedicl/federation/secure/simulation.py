"""Simulated clients in secure mode: each pins the identities of all others, as owners would over another channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ifedicl.data import Example
from ifedicl.federation.client import Client
from ifedicl.federation.engine import Door, Engine
from ifedicl.federation.private import Private
from ifedicl.federation.secure.client import SecureClient, identity_of
from ifedicl.federation.secure.engine import SecureEngine
from ifedicl.federation.secure.sums import GRADIENT_STEP
from ifedicl.settings import Method, PrivacySettings

PUBLIC_TEXTS = 64
"""Of a file of them: enough to say how large each number's gradient is."""


def promised(
    clients: Sequence[Client], method: Method, public: Sequence[Example], left: Mapping[str, int]
) -> tuple[Private, ...]:
    """What each client promises, in order; none where the settings promise no noise.

    Args:
        clients: in order.
        method: the settings.
        public: no one's data.
        left: how many gradients of this run left each client before, by its name.
    """
    if method.privacy is None or method.privacy.noise is None:
        return ()
    noise, survivors, rows = method.privacy.noise, method.privacy.min_clients, public[:PUBLIC_TEXTS]
    return tuple(
        Private(noise, survivors, method, rows, step=GRADIENT_STEP, left=left.get(client.name, 0)) for client in clients
    )


def secured(
    engine: Callable[[Sequence[Door]], Engine],
    clients: Sequence[Client],
    doors: Sequence[Door],
    rules: PrivacySettings,
    promises: Sequence[Private] = (),
) -> Engine:
    """An engine over clients that take part in sums only.

    Args:
        engine: carries the messages.
        clients: in order.
        doors: what stands before each of them and answers plain requests: the client itself, or its owner's policy and ledger.
        rules: of the sums; every client asks for the same.
        promises: each client's, in order; none: no noise is added.
    """
    pins = {client.name: identity_of(client).public for client in clients}
    if promises:
        secure = [
            SecureClient(client, pins, rules, door=promise.door(own.handle), noise=promise.noise)
            for client, own, promise in zip(clients, doors, promises, strict=True)
        ]
    else:
        secure = [SecureClient(client, pins, rules, door=own.handle) for client, own in zip(clients, doors, strict=True)]
    return SecureEngine(engine(secure), rules)
