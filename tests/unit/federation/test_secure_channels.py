"""Channel keys cross once in a job: who is told what, and when a sum takes four exchanges in place of five."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ifedicl.federation.messages import (
    BeginReply,
    BeginRequest,
    DealReply,
    DealRequest,
    Failure,
    FailureCode,
    JobRequest,
    MaskRequest,
    RevealRequest,
    SharesRequest,
    UpdateReply,
)
from ifedicl.federation.reply_sums import Total
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.settings import TOGETHER
from tests.support.endpoints import engine_over
from tests.support.engines import RecordingEngine
from tests.support.secure import REQUESTS, RULES, behind, drawn_client, fixed, lose, masking, secure_job

UPDATE = REQUESTS["update"]


def total_of(secure: SecureEngine) -> UpdateReply:
    (delivery,) = secure.exchange({TOGETHER: UPDATE}, 60.0, {})
    assert isinstance(delivery.reply, UpdateReply)
    return delivery.reply


def check(reply: UpdateReply, clients: list[Any]) -> None:
    plain = Total(UpdateReply)
    for client in clients:
        plain.add(client.given["update"])
    assert plain.reply is not None
    assert reply.examples == plain.reply.examples
    np.testing.assert_allclose(reply.coefficients.scales, plain.reply.coefficients.scales, atol=1e-6)


def asked(engine: RecordingEngine, name: str = "c0") -> list[str]:
    """What a client was asked since the last call."""
    kinds = [request.kind.removeprefix("sum_") for client, request, _ in engine.crossed if client == name]
    engine.crossed.clear()
    return kinds


FIVE = ["begin", "deal", "mask", "agree", "reveal"]
FOUR = ["begin", "mask", "agree", "reveal"]


def test_keys_cross_in_the_first_sum_only_and_later_ones_take_four_exchanges() -> None:
    clients = fixed(5)
    engine = RecordingEngine(behind(clients))
    secure = SecureEngine(engine, RULES)
    check(total_of(secure), clients)
    told = [request for _, request, _ in engine.crossed if isinstance(request, DealRequest)]
    assert [len(request.introductions) for request in told] == [5] * 5
    assert asked(engine) == FIVE
    for _ in range(3):
        check(total_of(secure), clients)
        begun = [reply for _, _, reply in engine.crossed if isinstance(reply, BeginReply)]
        assert [reply.channel for reply in begun] == [b""] * 5
        assert asked(engine) == FOUR


def test_a_sum_over_others_than_were_expected_takes_one_exchange_more_and_tells_only_what_is_new() -> None:
    clients = fixed(6)
    engine = RecordingEngine(behind(clients))
    secure, late = SecureEngine(engine, RULES), True
    engine.change = lambda name, request, reply: Failure(FailureCode.TOO_FEW) if late and name == "c5" else reply
    check(total_of(secure), clients[:5])
    assert asked(engine) == FIVE
    check(total_of(secure), clients[:5])
    assert asked(engine) == FOUR
    late = False
    check(total_of(secure), clients)
    told = {name: len(request.introductions) for name, request, _ in engine.crossed if isinstance(request, DealRequest)}
    assert told == {"c0": 1, "c1": 1, "c2": 1, "c3": 1, "c4": 1, "c5": 6}
    assert asked(engine) == FIVE
    engine.change = lose({"c2": BeginRequest})
    check(total_of(secure), [client for client in clients if client.name != "c2"])
    assert asked(engine) == FIVE


def test_whom_a_sum_expects_follows_from_the_last_one_of_its_kind() -> None:
    """A client without held-out examples is ready for each update and for no evaluation."""
    clients = fixed(5)
    engine = RecordingEngine(behind(clients))
    secure = SecureEngine(engine, RULES)
    missing = Failure(FailureCode.NO_EXAMPLES)
    engine.change = lambda name, request, reply: (
        missing if name == "c4" and isinstance(request, BeginRequest) and b"evaluate" in request.request else reply
    )
    exchanges = []
    for _ in range(2):
        for kind in ("update", "evaluate"):
            list(secure.exchange({TOGETHER: REQUESTS[kind]}, 60.0, {}))
            exchanges.append(asked(engine))
    assert exchanges == [FIVE, FIVE, FOUR, FOUR]


def test_a_client_that_starts_again_makes_a_new_key_and_the_others_are_told_of_it() -> None:
    clients = fixed(5)
    layers = masking(clients)
    inner = engine_over(layers)
    engine = RecordingEngine(inner)
    secure = SecureEngine(engine, RULES)
    list(secure.exchange({TOGETHER: JobRequest(secure_job())}, 60.0, {}))
    check(total_of(secure), clients)
    inner._clients["c3"] = engine_over([masking(clients)[3]])._clients["c3"]
    engine.crossed.clear()
    (delivery,) = secure.exchange({TOGETHER: UPDATE}, 60.0, {})
    assert delivery.reply == Failure(FailureCode.NO_CONTEXT), "the pool sends it the job again"
    list(secure.exchange({TOGETHER: JobRequest(secure_job())}, 60.0, {}))
    engine.crossed.clear()
    check(total_of(secure), clients)
    told = {name: request.introductions for name, request, _ in engine.crossed if isinstance(request, DealRequest)}
    assert {name: [entry[1] for entry in entries] for name, entries in told.items()} == {
        name: ["c3"] if name != "c3" else ["c0", "c1", "c2", "c4", "c3"] for name in told
    }


def test_a_server_that_starts_again_asks_for_the_keys_once_more() -> None:
    clients = fixed(5)
    engine = RecordingEngine(behind(clients))
    for _ in range(2):
        check(total_of(SecureEngine(engine, RULES)), clients)
        assert asked(engine) == FIVE


def test_a_deal_that_does_not_agree_with_the_others_costs_a_second_try_and_no_reply() -> None:
    """Nothing has left yet: the numbers of the first try are used again."""
    clients = fixed(6)

    def change(name: str, request: Any, reply: Any) -> Any:
        return (
            DealReply(reply.session, reply.deal[:-12] + bytes(12)) if name == "c4" and isinstance(reply, DealReply) else reply
        )

    engine = RecordingEngine(behind(clients), change)
    check(total_of(SecureEngine(engine, RULES)), [client for client in clients if client.name != "c4"])
    assert not [name for name, request, _ in engine.crossed if isinstance(request, MaskRequest) and name == "c4"]
    assert {sum(request.kind == "update" for request in client.asked) for client in clients} == {1}


@pytest.mark.parametrize("silent", [("c4",), ("c1", "c4")])
def test_survivors_that_do_not_reveal_cost_one_exchange_more(silent: tuple[str, ...]) -> None:
    clients = fixed(8)
    engine = RecordingEngine(behind(clients), lose({"c7": MaskRequest, **dict.fromkeys(silent, RevealRequest)}))
    check(total_of(SecureEngine(engine, RULES)), clients[:7])
    assert [request.owners for name, request, _ in engine.crossed if isinstance(request, SharesRequest) and name == "c0"] == [
        tuple(int(name[1]) for name in silent)
    ]


@pytest.mark.soak
def test_500_clients_in_one_process_with_half_of_those_lost_that_may_be() -> None:
    clients = [drawn_client(f"c{number}") for number in range(500)]
    lost = {f"c{number}": MaskRequest for number in range(70)} | {f"c{number}": RevealRequest for number in range(70, 75)}
    engine = RecordingEngine(behind(clients, RULES), lose(lost))
    check(total_of(SecureEngine(engine, RULES)), clients[70:])
