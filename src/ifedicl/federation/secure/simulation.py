"""Simulated clients in secure mode: each pins the identities of all others, as owners would over another channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from ifedicl.data import Example
from ifedicl.federation.client import Client
from ifedicl.federation.dp_client import DPClient
from ifedicl.federation.engine import Door, Engine
from ifedicl.federation.messages import Reply, Request
from ifedicl.federation.secure.quantised import GRADIENT_STEP
from ifedicl.federation.secure.sum_client import SecureClient, identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.settings import Method, PrivacySettings

PUBLIC_TEXTS = 64
"""Of a file of them: enough to say how large each number's gradient is."""


def promised(
    clients: Sequence[Client], method: Method, public: Sequence[Example], left: Mapping[str, int]
) -> tuple[DPClient, ...]:
    """What each client promises, in order; none where the settings promise no noise.

    Args:
        clients: in order.
        method: the settings.
        public: no one's data.
        left: how many gradients of this run left each client before, by its name.
    """
    if method.privacy is None or method.privacy.noise is None:
        return ()
    noise, survivors, rows = method.privacy.noise, method.privacy.min_survivors, public[:PUBLIC_TEXTS]
    return tuple(
        DPClient(noise, survivors, method, rows, step=GRADIENT_STEP, left=left.get(client.name, 0)) for client in clients
    )


Masking: TypeAlias = Callable[[Callable[[Request], Reply]], Door]
"""Makes the door that masks, of whoever answers its plain requests."""


def _unguarded(client: Client, masking: Masking) -> Door:
    return masking(client.handle)


def secured(
    engine: Callable[[Sequence[Door]], Engine],
    clients: Sequence[Client],
    rules: PrivacySettings,
    owned: Callable[[Client, Masking], Door] = _unguarded,
    promises: Sequence[DPClient] = (),
) -> Engine:
    """An engine over clients that take part in sums only.

    Args:
        engine: carries the messages.
        clients: in order.
        rules: of the sums; every client asks for the same.
        owned: puts an owner's policy and ledger around the door that masks.
        promises: each client's, in order; none: no noise is added.
    """
    pins = {client.name: identity_of(client).public for client in clients}
    masks: list[Masking] = [partial(SecureClient, client, pins, rules) for client in clients]
    if promises:
        masks = [_noisy(client, pins, rules, promise) for client, promise in zip(clients, promises, strict=True)]
    doors = [owned(client, masking) for client, masking in zip(clients, masks, strict=True)]
    return SecureEngine(engine(doors), rules)


def _noisy(client: Client, pins: Mapping[str, bytes], rules: PrivacySettings, promise: DPClient) -> Masking:
    def masking(answer: Callable[[Request], Reply]) -> Door:
        return SecureClient(client, pins, rules, promise.door(answer), noise=promise.noise)

    return masking
