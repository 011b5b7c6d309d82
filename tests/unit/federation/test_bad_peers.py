"""Secure sums with bad peers: a rotated key, bent secrets, wrong tags, silence. The others' sum comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ifedicl.errors import TooFewClientsError
from ifedicl.federation import messages
from ifedicl.federation.handler import Disclosure
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import (
    AgreeReply,
    AgreeRequest,
    BeginReply,
    BeginRequest,
    DealReply,
    DealRequest,
    Failure,
    FailureCode,
    JobRequest,
    MaskRequest,
    ObjectReply,
    Reply,
    Request,
    RevealReply,
    RevealRequest,
    UpdateReply,
)
from ifedicl.federation.reply_sums import Total
from ifedicl.federation.secure.sum_client import SecureClient, identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.settings import TOGETHER, PrivacySettings
from tests.support.endpoints import engine_over, secure_layer
from tests.support.engines import RecordingEngine
from tests.support.scripted import ScriptedClient
from tests.support.secure import REQUESTS, drawn_client, drawn_reply, secure_job

RULES = PrivacySettings(mode="secure", dropout=0.3, min_examples=2)
NAMES = tuple(f"c{number}" for number in range(10))
UPDATE = REQUESTS["update"]


def clients() -> list[ScriptedClient]:
    return [drawn_client(name) for name in NAMES]


def engine_of(own: list[ScriptedClient], pins: Callable[[str], dict[str, bytes]] | None = None) -> LocalEngine:
    """Ten clients that have taken the job; ``pins`` gives the identities that a client knows."""
    true = {client.name: identity_of(client).public for client in own}
    layers = [secure_layer(client, true if pins is None else pins(client.name), RULES) for client in own]
    for layer in layers:
        layer.handle(JobRequest(secure_job(RULES)))
    return engine_over(layers)


def plain_sum(names: list[str]) -> UpdateReply:
    """The total of these clients in open mode."""
    total = Total(UpdateReply)
    for name in names:
        reply = drawn_reply(UPDATE, np.random.default_rng([ord(letter) for letter in name]))
        assert isinstance(reply, UpdateReply)
        total.add(reply)
    assert total.reply is not None
    return total.reply


def check(reply: Reply, names: list[str]) -> None:
    expected = plain_sum(names)
    assert isinstance(reply, UpdateReply)
    assert reply.examples == expected.examples
    np.testing.assert_allclose(reply.coefficients.scales, expected.coefficients.scales, atol=1e-6)


def summed(engine: Any) -> tuple[Reply, dict[str, FailureCode]]:
    """The total, and the codes of the clients that are not in it."""
    (delivery,) = SecureEngine(engine, RULES).exchange({TOGETHER: UPDATE}, 60.0, {})
    codes = {part.client: part.reply.code for part in delivery.parts if isinstance(part.reply, Failure)}
    return delivery.reply, codes


@pytest.mark.parametrize("bad", [("c4",), ("c4", "c7")])
def test_a_peer_with_another_key_than_the_pinned_one_is_left_out_in_one_more_try(bad: tuple[str, ...]) -> None:
    own = clients()

    def pins(_name: str) -> dict[str, bytes]:
        true = {client.name: identity_of(client).public for client in own}
        return true | {name: identity_of(drawn_client(f"former {name}")).public for name in bad}

    engine = RecordingEngine(engine_of(own, pins))
    reply, _ = summed(engine)
    check(reply, [name for name in NAMES if name not in bad])
    begun = [request.session for _, request, _ in engine.crossed if isinstance(request, BeginRequest)]
    assert len(set(begun)) == 2
    assert len(begun) == 10 + 10 - len(bad)
    for client in own:
        assert sum(request.kind == "update" for request in client.asked) == 1, "the reply of the first try is used again"


def test_a_peer_that_objects_to_all_others_is_the_one_that_is_left_out() -> None:
    own = clients()
    true = {client.name: identity_of(client).public for client in own}
    engine = RecordingEngine(engine_of(own, lambda name: {name: true[name]} if name == "c3" else true))
    reply, _ = summed(engine)
    check(reply, [name for name in NAMES if name != "c3"])


def test_the_next_sum_of_the_run_begins_without_the_bad_peer() -> None:
    own = clients()
    true = {client.name: identity_of(client).public for client in own}
    wrong = true | {"c4": identity_of(drawn_client("former")).public}
    inner = RecordingEngine(engine_of(own, lambda _name: wrong))
    engine = SecureEngine(inner, RULES)
    for _ in range(2):
        list(engine.exchange({TOGETHER: UPDATE}, 60.0, {}))
    begun = [(request.session, name) for name, request, _ in inner.crossed if isinstance(request, BeginRequest)]
    assert len({session for session, _ in begun}) == 3
    assert [name for _, name in begun].count("c4") == 1


def bent(reply: Reply) -> Reply:
    """The reply with one bit of its secret part changed."""
    for kind, field in ((BeginReply, "channel"), (DealReply, "deal"), (AgreeReply, "tags"), (RevealReply, "own")):
        if isinstance(reply, kind):
            secret = getattr(reply, field)
            return replace(reply, **{field: bytes([secret[0] ^ 1]) + secret[1:]})
    return reply


IN_THE_SUM: Mapping[type[Request], bool] = {
    BeginRequest: False,
    DealRequest: False,
    MaskRequest: False,
    AgreeRequest: True,
    RevealRequest: True,
}
"""Whether the numbers of a client are in the total if it fails at this step."""


@pytest.mark.parametrize("step", [BeginRequest, DealRequest, AgreeRequest, RevealRequest])
def test_one_peer_that_sends_a_wrong_key_tag_or_secret_stops_nobody(step: type[Request]) -> None:
    def change(name: str, request: Request, reply: Reply) -> Reply:
        return bent(reply) if name == "c4" and isinstance(request, step) else reply

    engine = RecordingEngine(engine_of(clients()), change)
    reply, _ = summed(engine)
    check(reply, [name for name in NAMES if step is not BeginRequest or name != "c4"])
    assert len({request.session for _, request, _ in engine.crossed if isinstance(request, BeginRequest)}) <= 2


@pytest.mark.parametrize("lost", [("c4",), ("c4", "c7")])
@pytest.mark.parametrize("step", IN_THE_SUM)
def test_peers_that_fall_silent_stop_nobody(step: type[Request], lost: tuple[str, ...]) -> None:
    silent: set[str] = set()

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if name in lost and isinstance(request, step):
            silent.add(name)
        return Failure(FailureCode.LOST) if name in silent else reply

    engine = RecordingEngine(engine_of(clients()), change)
    reply, codes = summed(engine)
    check(reply, [name for name in NAMES if IN_THE_SUM[step] or name not in lost])
    assert codes == dict.fromkeys(lost, FailureCode.LOST)
    assert len({request.session for _, request, _ in engine.crossed if isinstance(request, BeginRequest)}) == 1


def test_peers_that_object_again_in_the_second_try_end_the_sum_by_name() -> None:
    left: set[str] = set()

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if isinstance(request, DealRequest) and name == ("c0" if "c1" not in left else "c2"):
            left.add("c1")
            return ObjectReply(request.session, (1,))
        return reply

    with pytest.raises(TooFewClientsError, match="in two tries"):
        summed(RecordingEngine(engine_of(clients()), change))


def test_a_total_that_came_out_costs_another_reply_and_a_sum_that_did_not_costs_none() -> None:
    """The reply is kept for one more try only, so a limit cannot be passed by with the same request."""
    client = drawn_client("c0")
    pins = {name: identity_of(drawn_client(name)).public for name in NAMES}
    layer: SecureClient = secure_layer(client, pins, RULES)
    layer.handle(JobRequest(secure_job(RULES)))

    def begin(number: int) -> Disclosure:
        return layer.handle(BeginRequest(number.to_bytes(16, "big"), messages.encode(UPDATE)))

    for number, computed in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3)):
        assert isinstance(begin(number).reply, BeginReply)
        assert sum(request.kind == "update" for request in client.asked) == computed


class Drawn:
    """Noise that is another one each time."""

    def __init__(self) -> None:
        self.count = 0

    def noise(self, kind: str, size: int) -> Any:
        self.count += 1
        return np.full(size, self.count, dtype=np.int64)


def noisy_engine() -> tuple[list[ScriptedClient], dict[str, Drawn], LocalEngine]:
    own, noise = clients(), {name: Drawn() for name in NAMES}
    pins = {client.name: identity_of(client).public for client in own}
    layers = [secure_layer(client, pins, RULES, noise=noise[client.name]) for client in own]
    for layer in layers:
        layer.handle(JobRequest(secure_job(RULES)))
    return own, noise, engine_over(layers)


def replies_of(own: list[ScriptedClient]) -> dict[str, int]:
    return {client.name: sum(request.kind == "update" for request in client.asked) for client in own}


def test_with_noise_whoever_has_sent_masked_numbers_pays_for_another_try() -> None:
    """A server that lies may have the total of the first one. Whoever was not asked for numbers pays once."""
    own, _, engine = noisy_engine()
    sessions: dict[bytes, None] = {}

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if isinstance(reply, DealReply):
            sessions[reply.session] = None
        if isinstance(reply, DealReply) and name == "c4":  # neither its own secret nor the others' shares fit the commitment
            return replace(reply, deal=reply.deal[:-36] + bytes(16) + reply.deal[-20:])
        if isinstance(request, DealRequest) and name == "c9" and len(sessions) == 1:
            return Failure(FailureCode.LOST)
        return reply

    reply, _ = summed(RecordingEngine(engine, change))
    others = [name for name in NAMES if name != "c4"]
    assert isinstance(reply, UpdateReply)
    assert {name: replies_of(own)[name] for name in others} == {name: 1 if name == "c9" else 2 for name in others}


def test_a_client_that_is_asked_for_no_shares_is_in_no_second_total_for_the_same_price() -> None:
    own, noise, inner = noisy_engine()

    class Lying(RecordingEngine):
        def exchange(self, requests: Any, deadline: float, heads: Any) -> Any:
            kept = {n: r for n, r in requests.items() if not (n == "c0" and isinstance(r, RevealRequest))}
            yield from super().exchange(kept, deadline, heads)

    engine = SecureEngine(Lying(inner), RULES)
    for total in (1, 2):
        (delivery,) = engine.exchange({TOGETHER: UPDATE}, 60.0, {})
        assert isinstance(delivery.reply, UpdateReply)
        assert set(replies_of(own).values()) == {total}
        assert {item.count for item in noise.values()} == {total}
