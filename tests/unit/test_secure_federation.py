"""Secure mode: the coordinator sees one client that stands for the sum over all, and no message says more.

Two kinds of clients: real ones on the tiny Llama, and *fixed* ones whose replies are given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifedicl.backbone.load import Backbone
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import ReadoutSums
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors, pooled
from ifedicl.data import Example, Role
from ifedicl.errors import SecureSumError, TooFewClientsError
from ifedicl.federation.assignment import ModelShape
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.events import Event, RoundDone
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import (
    BeginReply,
    BeginRequest,
    CompareReply,
    CompareRequest,
    ContextReply,
    ContextRequest,
    DealReply,
    DealRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    GradientReply,
    GradientRequest,
    MaskReply,
    MaskRequest,
    Reply,
    Request,
    RevealReply,
    RevealRequest,
    StatisticsReply,
    StatisticsRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
    decode_reply,
    encode,
)
from ifedicl.federation.secure.quantised import SUMS
from ifedicl.federation.secure.sum_client import SecureClient, identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import TOGETHER, NoiseSettings, PrivacySettings
from tests import tiny
from tests.unit.test_secure_sum import NEVER, uniform_p

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=12)
RULES = PrivacySettings(mode="secure", drop_out=0.4, min_examples=2)
LAYERS, WIDTH, CLASSES = 2, 4, 2
SCALES = Coefficients(np.full((LAYERS, 2, 2), 0.5, dtype=np.float32))
VECTORS = VectorsRequest(tiny.TASK, tiny.method(), "f" * 64, "")
CONTEXT = ContextRequest(tiny.TASK, tiny.method(), "f" * 64, Context(np.zeros((LAYERS, 2, WIDTH), dtype=np.float32)), "c")
REQUESTS: dict[str, Request] = {
    request.kind: request
    for request in (
        VECTORS,
        UpdateRequest("c", 0, 0, 1, SCALES),
        GradientRequest("c", 0, SCALES),
        EvaluateRequest("c", Role.SELECTION, SCALES),
        StatisticsRequest("c", SCALES),
        CompareRequest("c", SCALES, None),
    )
}


def drawn_reply(request: Request, draw: np.random.Generator) -> Reply:
    """What some client might answer."""
    count = int(draw.integers(2, 50))
    if isinstance(request, VectorsRequest):
        counts = draw.multinomial(count, [0.5, 0.5])
        return VectorsReply(
            ContextVectors.from_wire(draw.normal(size=(2, LAYERS, 2, WIDTH)).astype(np.float32), counts),
            f"{count}:x",
            not request.cursor,
            "float32",
            "float32",
        )
    if isinstance(request, UpdateRequest):
        return UpdateReply(Coefficients(draw.normal(size=(LAYERS, 2, 2)).astype(np.float32)), count, float(draw.random()))
    if isinstance(request, GradientRequest):
        return GradientReply(GradientSum({"scales": draw.normal(size=(LAYERS, 2, 2)).astype(np.float32)}, count, 1.5))
    if isinstance(request, EvaluateRequest):
        return EvaluateReply((Tally(count, int(draw.integers(count)), float(draw.random() * 9)), Tally(count, 1, 0.25)))
    if isinstance(request, StatisticsRequest):
        rows = np.concatenate([draw.normal(size=(count, WIDTH + CLASSES)), np.ones((count, 1))], axis=1)
        return StatisticsReply(ReadoutSums.of(rows, draw.integers(0, CLASSES, count), CLASSES))
    truth = (count - 1, 1)
    return CompareReply(Comparison(Tally(count, 2, 3.5), Tally(count, 1, 4.25), 0.75, 1, truth, truth[::-1]))


@dataclass
class Fixed:
    """A client whose replies are given: by a rule, or drawn and then always the same."""

    name: str
    rule: Callable[[Request], Reply | None] = lambda request: None
    training: int = 50
    given: dict[str, Reply] = field(default_factory=dict)
    backbone: Any = field(default_factory=lambda: type("Model", (), {"dtype": "float32"}))

    def handle(self, request: Request) -> Reply:
        if isinstance(request, ContextRequest):
            return ContextReply()
        reply = self.rule(request)
        if reply is None:
            seed = [ord(letter) for letter in self.name]
            reply = self.given.setdefault(request.kind, drawn_reply(request, np.random.default_rng(seed)))
        return reply

    def count(self, role: Role) -> int:
        return self.training

    def secret_for(self, purpose: str) -> bytes:
        return (self.name + purpose).encode().ljust(32)[:32]


class Recording:
    """An engine around another that keeps what crosses, and may change or lose it."""

    def __init__(
        self, inner: Engine, change: Callable[[str, Request, Reply], Reply] = lambda name, request, reply: reply
    ) -> None:
        self.inner, self.change = inner, change
        self.crossed: list[tuple[str, Request, Reply]] = []

    def clients(self) -> tuple[str, ...]:
        return self.inner.clients()

    def exchange(self, requests: Mapping[str, Request], deadline: float) -> Iterator[Delivery]:
        for delivery in self.inner.exchange(requests, deadline):
            reply = self.change(delivery.client, requests[delivery.client], delivery.reply)
            self.crossed.append((delivery.client, requests[delivery.client], reply))
            yield replace(delivery, reply=reply)

    def asked(self, kind: type[Request]) -> list[str]:
        return [name for name, request, _ in self.crossed if isinstance(request, kind)]


def fixed(count: int, **options: Any) -> list[Any]:
    return [Fixed(f"c{number}", **options) for number in range(count)]


def failing(code: FailureCode) -> Callable[[Request], Reply]:
    return lambda request: Failure(code)


def behind(clients: Sequence[Any], rules: PrivacySettings = RULES, **options: Any) -> LocalEngine:
    """A local engine over secure doors."""
    pins = {client.name: identity_of(client).public for client in clients}
    return LocalEngine([SecureClient(client, pins, rules, **options) for client in clients])


def summed(inner: Engine, request: Request, rules: PrivacySettings = RULES) -> Delivery:
    (delivery,) = SecureEngine(inner, rules).exchange({TOGETHER: request}, 60.0)
    return delivery


def lose(lost: Mapping[str, type[Request]]) -> Callable[[str, Request, Reply], Reply]:
    """These clients' answers to these requests, and to all later ones, never arrive."""
    gone: set[str] = set()

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if isinstance(request, lost.get(name, ())):
            gone.add(name)
        return Failure(FailureCode.LOST) if name in gone else reply

    return change


# Ledgers


def test_a_ledger_in_anothers_place_is_never_believed() -> None:
    """The client is told the head that is known of it, sum after sum, until its ledger has that again."""
    own, other, told = Head(5, "a" * 64), Head(1, "b" * 64), list[Head | None]()

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if name != "c0":
            return reply
        if isinstance(request, BeginRequest):
            told.append(request.head)
        return replace(reply, head=own) if len(told) == 1 else Failure(FailureCode.LEDGER, head=other)

    engine = SecureEngine(Recording(behind(fixed(5)), change), RULES)
    for _ in range(4):
        list(engine.exchange({TOGETHER: REQUESTS["update"]}, 60.0))
    assert told == [None, own, own, own]


# The total


def together(sent: Sequence[Reply]) -> Reply:
    """What the coordinator makes of these replies in open mode, as one reply."""
    replies: list[Any] = [decode_reply(encode(reply)) for reply in sent]
    first = replies[0]
    if isinstance(first, VectorsReply):
        return replace(first, vectors=pooled([reply.vectors for reply in replies]))
    if isinstance(first, UpdateReply):
        examples = [reply.examples for reply in replies]
        stacks = {name: np.stack([reply.coefficients.arrays[name] for reply in replies]) for name in first.coefficients.arrays}
        means = {name: np.average(s, axis=0, weights=examples).astype(np.float32) for name, s in stacks.items()}
        loss = float(np.average([reply.loss for reply in replies], weights=examples))
        return UpdateReply(Coefficients.of(means), sum(examples), loss)
    if isinstance(first, GradientReply):
        arrays = {name: sum(reply.sums.arrays[name] for reply in replies) for name in first.sums.arrays}
        counts, losses = [reply.sums.examples for reply in replies], [reply.sums.loss for reply in replies]
        return GradientReply(GradientSum(arrays, sum(counts), sum(losses)))
    if isinstance(first, EvaluateReply):
        return EvaluateReply(tuple(sum(own, Tally()) for own in zip(*(reply.tallies for reply in replies), strict=True)))
    if isinstance(first, StatisticsReply):
        own = [reply.sums for reply in replies]
        gram, moment = sum(sums.gram for sums in own), sum(sums.moment for sums in own)
        return StatisticsReply(ReadoutSums(gram, moment, sum(sums.examples for sums in own)))
    return CompareReply(sum((reply.comparison for reply in replies), Comparison()))


def assert_same_sums(kind: str, total: Reply, plain: Reply, clients: int) -> None:
    """Equal to half a step for each client; counts exactly."""
    own = SUMS[type(REQUESTS[kind])]
    step = 2.0**-own.fraction
    ours, theirs = own.rule.apart(total), own.rule.apart(plain)
    assert ours.keys() == theirs.keys()
    for name, part in theirs.items():
        np.testing.assert_allclose(ours[name], part, rtol=1e-6, atol=clients * step, err_msg=name)


@pytest.mark.parametrize("kind", REQUESTS)
def test_the_total_of_each_kind_of_reply_is_that_of_open_mode_to_the_step(kind: str) -> None:
    clients = fixed(5)
    delivery = summed(behind(clients), REQUESTS[kind])
    assert_same_sums(kind, delivery.reply, together([client.given[kind] for client in clients]), 5)


@REPEATABLE
@given(st.data())
def test_any_drop_outs_up_to_the_threshold_leave_the_total_of_the_others(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 12))
    spare = count - RULES.threshold(count)
    gone = data.draw(st.lists(st.integers(0, count - 1), max_size=spare, unique=True))
    turn = st.sampled_from([DealRequest, MaskRequest, RevealRequest])
    lost = {f"c{number}": data.draw(turn) for number in gone}
    clients = fixed(count)

    delivery = summed(Recording(behind(clients), lose(lost)), REQUESTS["update"])

    in_it = [client for client in clients if lost.get(client.name) not in (DealRequest, MaskRequest)]
    assert_same_sums("update", delivery.reply, together([client.given["update"] for client in in_it]), count)
    assert {part.client for part in delivery.parts if isinstance(part.reply, Failure)} == set(lost)


@pytest.mark.parametrize("at", [BeginRequest, DealRequest, MaskRequest, RevealRequest])
def test_beyond_the_threshold_the_sum_is_given_up_and_says_why(at: type[Request]) -> None:
    lost = dict.fromkeys(["c0", "c1", "c2"], at)  # of 5, with a threshold of 3
    engine = Recording(behind(fixed(5)), lose(lost))
    with pytest.raises(
        TooFewClientsError, match=r"2 clients .*3 are needed.*c0: lost, c1: lost, c2: lost.*Nothing was revealed"
    ):
        summed(engine, REQUESTS["update"])
    if at is not RevealRequest:
        assert engine.asked(RevealRequest) == [], "no share was asked for"


def test_who_is_missing_from_the_start_is_not_missed_later() -> None:
    # 6 of 10 begin: that is another sum, of 6 clients, of which again some may be lost.
    lost: dict[str, type[Request]] = {f"c{number}": BeginRequest for number in range(4)} | {
        "c4": MaskRequest,
        "c5": DealRequest,
    }
    clients = fixed(10)
    delivery = summed(Recording(behind(clients), lose(lost)), REQUESTS["gradient"])
    assert_same_sums("gradient", delivery.reply, together([client.given["gradient"] for client in clients[6:]]), 10)


def test_nobody_with_examples_is_no_failure_of_the_sum() -> None:
    delivery = summed(behind(fixed(4, rule=failing(FailureCode.NO_EXAMPLES))), REQUESTS["compare"])
    assert delivery.reply == Failure(FailureCode.NO_EXAMPLES)


def test_too_few_with_examples_is_one() -> None:
    clients = [*fixed(2), *(Fixed(name, rule=failing(FailureCode.NO_EXAMPLES)) for name in "xyz")]
    with pytest.raises(TooFewClientsError, match="2 clients have something to add, 3 are needed"):
        summed(behind(clients), REQUESTS["compare"])


def test_a_readout_that_owners_forbid_is_no_failure_of_the_run() -> None:
    codes = (FailureCode.REFUSED, FailureCode.TOO_FEW)
    forbidding = [Fixed(code.value, rule=failing(code)) for code in codes]
    delivery = summed(behind([*fixed(2), *forbidding]), REQUESTS["statistics"])
    assert delivery.reply == Failure(FailureCode.REFUSED)
    with pytest.raises(TooFewClientsError):  # a round cannot be done without
        summed(behind([*fixed(2), *forbidding]), REQUESTS["update"])


def test_a_client_with_another_layout_is_left_out() -> None:
    odd = Fixed("odd", rule=lambda request: EvaluateReply((Tally(5, 1, 1.0),)))
    clients = [*fixed(4), odd]
    delivery = summed(behind(clients), REQUESTS["evaluate"])
    assert_same_sums("evaluate", delivery.reply, together([client.given["evaluate"] for client in clients[:4]]), 4)


def test_noise_is_added_before_masking_and_lands_in_the_total() -> None:
    asked: list[tuple[str, int]] = []

    def noise(kind: str, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        asked.append((kind, size))
        return np.full(size, 7000, dtype=np.int64)

    quiet, loud = (summed(behind(fixed(4), noise=added), REQUESTS["gradient"]).reply for added in (None, noise))
    assert isinstance(quiet, GradientReply)
    assert isinstance(loud, GradientReply)
    assert asked == [("gradient", 10)] * 4
    added = loud.sums.arrays["scales"].astype(np.float64) - quiet.sums.arrays["scales"]
    np.testing.assert_allclose(added, 4 * 7000 * 2.0 ** -SUMS[GradientRequest].fraction, atol=2.0**-22)


# What crosses


@pytest.mark.parametrize("kind", REQUESTS)
def test_only_keys_shares_and_masked_numbers_cross(kind: str) -> None:
    engine = Recording(behind(fixed(4)))
    summed(engine, REQUESTS[kind])
    assert [type(reply) for name, _, reply in engine.crossed if name == "c0"] == [BeginReply, DealReply, MaskReply, RevealReply]
    begin = next(reply for name, _, reply in engine.crossed if name == "c0" and isinstance(reply, BeginReply))
    assert begin.dtype == "float32"
    # Nothing of a reply is in what goes before the masked numbers: two clients with other numbers say the same.
    other = next(reply for name, _, reply in engine.crossed if name == "c1" and isinstance(reply, BeginReply))
    assert begin.layout == other.layout
    assert len(encode(begin)) == len(encode(other))


def test_recorded_traffic_of_one_client_and_its_difference_over_two_rounds_is_uniform() -> None:
    rows = 20_000
    same = StatisticsReply(ReadoutSums.of(np.ones((40, 200)), np.zeros(40, dtype=np.int64), 2))
    masked: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for _ in range(2):
        engine = Recording(behind(fixed(4, rule=lambda request: same)))
        summed(engine, REQUESTS["statistics"])
        masked += [reply.masked for name, _, reply in engine.crossed if name == "c2" and isinstance(reply, MaskReply)]
    first, second = masked
    assert len(first) > rows
    assert uniform_p(first.tobytes()) > NEVER
    grid = SUMS[StatisticsRequest].grid(RULES)
    difference = grid.packed(grid.unpacked(first) - grid.unpacked(second))
    assert uniform_p(difference.tobytes()) > NEVER
    assert not np.array_equal(first, second)


def test_a_cursor_tells_nothing_and_comes_back_as_it_was() -> None:
    asked: list[str] = []

    def rule(request: Request) -> Reply | None:
        assert isinstance(request, VectorsRequest)
        asked.append(request.cursor)
        return None

    clients = [Fixed("few", training=3, rule=rule), Fixed("many", training=9_999_999), *fixed(2)]
    engine = behind(clients)
    reply = summed(engine, VECTORS).reply
    assert isinstance(reply, VectorsReply)
    sealed = json.loads(reply.cursor)
    assert len({len(cursor) for cursor in sealed.values()}) == 1, "its length would tell how many examples there are"
    for client in clients:
        client.given.clear()
    again = summed(engine, replace(VECTORS, cursor=reply.cursor)).reply
    assert isinstance(again, VectorsReply)
    assert (reply.replaces, again.replaces) == (True, False)
    assert asked[0] == ""
    assert asked[1].endswith(":x")


def test_what_it_costs_each_client_is_in_the_parts() -> None:
    inner = Recording(behind(fixed(4)))
    delivery = summed(inner, REQUESTS["update"])
    assert [part.client for part in delivery.parts] == ["c0", "c1", "c2", "c3"]
    sent = sum(len(encode(reply)) for name, _, reply in inner.crossed if name == "c0")
    received = sum(len(encode(request)) for name, request, _ in inner.crossed if name == "c0")
    assert (delivery.parts[0].bytes_up, delivery.parts[0].bytes_down) == (sent, received)
    assert delivery.bytes_up == sum(part.bytes_up for part in delivery.parts)


# What a client refuses


def door(rules: PrivacySettings = RULES, **options: Any) -> SecureClient:
    clients = fixed(3, **options)
    return SecureClient(clients[0], {client.name: identity_of(client).public for client in clients}, rules)


def fixed_of(door: SecureClient) -> Any:
    """The :class:`Fixed` one behind it."""
    return door._client


def begin(session: str = "s", request: Request = REQUESTS["update"], rules: PrivacySettings = RULES) -> BeginRequest:
    return BeginRequest(session, rules, encode(request))


def test_a_secure_client_answers_no_plain_request_and_an_open_one_no_secure_request(backbone: Backbone) -> None:
    for request in REQUESTS.values():
        assert door().handle(request) == Failure(FailureCode.OTHER_MODE)
    assert isinstance(door().handle(CONTEXT), ContextReply)
    plain = Client("a", tiny.examples(6), backbone, secret=b"s")
    assert plain.handle(begin()) == Failure(FailureCode.OTHER_MODE)


@pytest.mark.parametrize(
    "weaker", [{"min_clients": 2}, {"drop_out": 0.45}, {"mode": "open"}], ids=lambda change: next(iter(change))
)
def test_a_client_takes_no_weaker_rules_than_its_own_and_stricter_ones(weaker: dict[str, Any]) -> None:
    assert door().handle(begin(rules=RULES.model_copy(update=weaker))) == Failure(FailureCode.OTHER_MODE)
    stricter = RULES.model_copy(update={"min_clients": 4, "drop_out": 0.0})
    assert isinstance(door().handle(begin(rules=stricter)), BeginReply)


def test_a_client_without_noise_to_add_takes_no_part_in_a_run_that_promises_noise() -> None:
    noisy = RULES.model_copy(update={"mode": "private", "noise": NoiseSettings()})
    assert door().handle(begin(rules=noisy)) == Failure(FailureCode.OTHER_MODE)


@pytest.mark.parametrize("inner", [CONTEXT, begin("inner")], ids=["context", "sum"])
def test_what_cannot_be_summed_is_not_answered_within_a_sum(inner: Request) -> None:
    assert door().handle(begin(request=inner)) == Failure(FailureCode.PROTOCOL)


def test_bytes_that_are_no_request_are_refused() -> None:
    assert door().handle(BeginRequest("s", RULES, b"torn")) == Failure(FailureCode.PROTOCOL)


def test_a_roster_of_too_few_is_refused() -> None:
    clients = fixed(2)
    doors = [SecureClient(client, {own.name: identity_of(own).public for own in clients}, RULES) for client in clients]
    replies = [own.handle(begin()) for own in doors]
    keys = tuple((reply.mask_key, reply.channel_key, reply.signature) for reply in replies if isinstance(reply, BeginReply))
    assert doors[0].handle(DealRequest("s", ("c0", "c1"), keys)) == Failure(FailureCode.PROTOCOL)


def test_replayed_messages_of_this_and_of_earlier_sums_are_refused() -> None:
    engine = Recording(behind(fixed(4)))
    secure = SecureEngine(engine, RULES)
    for _ in range(2):
        list(secure.exchange({TOGETHER: REQUESTS["update"]}, 60.0))
    for name, request, _ in list(engine.crossed):
        (delivery,) = engine.inner.exchange({name: request}, 60.0)
        assert delivery.reply == Failure(FailureCode.PROTOCOL), request.kind


def test_masked_numbers_are_asked_for_once() -> None:
    # The same masks over the answers to two requests would give their difference away.
    twice: list[Reply] = []

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if isinstance(request, MaskRequest) and name == "c0":
            twice.extend(delivery.reply for delivery in engine.inner.exchange({name: request}, 60.0))
        return reply

    engine = Recording(behind(fixed(5)), change)
    delivery = summed(engine, REQUESTS["update"])  # c0 has left the sum: it is lost before it reveals
    assert twice == [Failure(FailureCode.PROTOCOL)]
    assert [part.client for part in delivery.parts if isinstance(part.reply, Failure)] == ["c0"]


@pytest.mark.parametrize("kind", [BeginReply, DealReply, RevealReply])
def test_bent_messages_end_in_a_refusal_or_an_abort_and_never_in_a_wrong_total(kind: type[Reply]) -> None:
    def change(name: str, request: Request, reply: Reply) -> Reply:
        if name != "c1" or not isinstance(reply, kind):
            return reply
        if isinstance(reply, BeginReply):
            return replace(reply, mask_key=bytes(31) + b"\x09")
        if isinstance(reply, DealReply):
            return replace(reply, sealed=tuple(bytes([text[0] ^ 1]) + text[1:] for text in reply.sealed))
        assert isinstance(reply, RevealReply)
        return replace(reply, shares=tuple(bytes([share[0] ^ 1]) + share[1:] for share in reply.shares))

    with pytest.raises((TooFewClientsError, SecureSumError)):
        summed(Recording(behind(fixed(4)), change), REQUESTS["update"])


def test_replies_of_another_session_are_not_taken() -> None:
    engine = Recording(behind(fixed(5)), lambda name, request, reply: reply)
    summed(engine, REQUESTS["update"])
    old = {(name, type(reply)): reply for name, _, reply in engine.crossed}
    engine.change = lambda name, request, reply: old[name, type(reply)] if name == "c4" else reply
    delivery = summed(engine, REQUESTS["update"])
    assert [(part.client, part.reply) for part in delivery.parts if isinstance(part.reply, Failure)] == [
        ("c4", Failure(FailureCode.BAD_REPLY))
    ]


# Small groups, and a client's own checks


def vectors_of(count: int, *, replaces: bool = False) -> Callable[[Request], Reply | None]:
    means = np.ones((1, LAYERS, 2, WIDTH), dtype=np.float32)
    reply = VectorsReply(ContextVectors.from_wire(means, np.array([count])), f"{count}:y", replaces, "float32", "float32")
    return lambda request: reply if isinstance(request, VectorsRequest) else None


@pytest.mark.parametrize("kind", ["vectors", "update", "gradient", "statistics"])
def test_a_client_with_too_few_training_examples_gives_nothing_made_from_them(kind: str) -> None:
    assert door(training=1).handle(begin(request=REQUESTS[kind])) == Failure(FailureCode.TOO_FEW)
    assert isinstance(door(training=2).handle(begin(request=REQUESTS[kind])), BeginReply)


def test_a_single_added_example_is_held_back_until_there_are_more() -> None:
    client = door()
    first = client.handle(begin("first", VECTORS))
    assert isinstance(first, BeginReply)
    for count, expected in ((1, Failure), (2, BeginReply)):
        fixed_of(client).rule = vectors_of(count)
        reply = client.handle(replace(begin(f"{count} more", VECTORS), cursor=first.cursor))
        assert isinstance(reply, expected), count


def test_changed_examples_are_not_summed_again_since_both_sums_could_be_subtracted() -> None:
    client = door()
    first = client.handle(begin("first", VECTORS))
    assert isinstance(first, BeginReply)
    fixed_of(client).rule = vectors_of(30, replaces=True)
    assert client.handle(replace(begin("second", VECTORS), cursor=first.cursor)) == Failure(FailureCode.CHANGED)


def test_a_refresh_for_which_too_few_have_anything_new_adds_nothing() -> None:
    clients = fixed(4)
    engine = behind(clients)
    first = summed(engine, VECTORS).reply
    assert isinstance(first, VectorsReply)
    for client, added in zip(clients, (0, 1, 2, 40), strict=True):
        client.rule = vectors_of(added)
    delivery = summed(engine, replace(VECTORS, cursor=first.cursor))
    assert delivery.reply == Failure(FailureCode.TOO_FEW)


def test_a_cursor_that_is_not_the_clients_own_is_refused() -> None:
    assert door().handle(replace(begin(request=VECTORS), cursor="ab" * 92)) == Failure(FailureCode.PROTOCOL)


def test_a_client_keeps_back_an_update_that_is_too_long_and_numbers_that_do_not_fit() -> None:
    far = Coefficients(np.full((LAYERS, 2, 2), 90.0, dtype=np.float32))
    reply = door(rule=lambda request: UpdateReply(far, 5, 0.5)).handle(begin())
    assert reply == Failure(FailureCode.PROTOCOL)
    huge = [
        Fixed(f"h{number}", rule=lambda request: GradientReply(GradientSum({"scales": far.scales * 1e6}, 5, 0.5)))
        for number in range(1)
    ]
    delivery = summed(behind([*fixed(4), *huge]), REQUESTS["gradient"])
    assert [part.client for part in delivery.parts if isinstance(part.reply, Failure)] == ["h0"]


# Whole runs

HANDS: dict[str, tuple[Example, ...]] = {name: tiny.examples(20, seed=seed) for seed, name in enumerate("abcde")}
WEIGHTED: dict[str, Any] = {
    "vectors": {"weighting": "examples"},
    "rounds": {"rounds": 3, "weighting": "examples"},
    "holdout": {"selection": 0.25, "gate": 0.2},
}


def real(backbone: Backbone, hands: Mapping[str, tuple[Example, ...]] = HANDS) -> list[Client]:
    return [Client(name, examples, backbone, secret=name.encode()) for name, examples in hands.items()]


def run(
    backbone: Backbone, engine: Engine, *, rules: PrivacySettings | None = RULES, sections: Any = None, **options: Any
) -> Outcome:
    privacy = {} if rules is None else {"privacy": rules.model_dump()}
    method = tiny.method(**{**WEIGHTED, **(sections or {})}, **privacy)
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    files = {name: options.pop(name) for name in ("checkpoint_file", "observer") if name in options}
    return Coordinator(engine, tiny.TASK, method, shape, **files).run(**options)


SECTIONS = [
    {},
    {"server": {"update": "gradient", "draw": 0.5}},
    {"server": {}},
    {"vectors": {"weighting": "examples", "balance": "class"}},
]


@pytest.mark.parametrize("sections", SECTIONS, ids=["mean", "gradient", "server", "by class"])
def test_a_secure_run_gives_the_open_runs_adapter_up_to_rounding(backbone: Backbone, sections: Any) -> None:
    plain = run(backbone, LocalEngine(real(backbone)), rules=None, sections=sections)
    secure = run(backbone, SecureEngine(behind(real(backbone)), RULES), sections=sections)
    np.testing.assert_allclose(secure.context.vectors, plain.context.vectors, atol=2.0**-12)
    np.testing.assert_allclose(secure.coefficients.scales, plain.coefficients.scales, atol=1e-4)
    assert secure.chosen_round == plain.chosen_round
    assert secure.gate is not None
    assert plain.gate is not None
    assert secure.gate.adapter.correct == plain.gate.adapter.correct
    assert (secure.gate.truth, secure.gate.answers) == (plain.gate.truth, plain.gate.answers)
    assert [item.held_out and item.held_out.examples for item in secure.state.history] == [
        item.held_out and item.held_out.examples for item in plain.state.history
    ]


def test_a_secure_run_with_subspace_and_readout_ends_with_both(backbone: Backbone) -> None:
    sections = {"subspace": {"rank": 2}, "readout": {}}
    outcome = run(backbone, SecureEngine(behind(real(backbone)), RULES), sections=sections)
    assert outcome.context.rank == 2
    assert outcome.state.readout_round == outcome.chosen_round


def test_the_coordinator_keeps_no_single_clients_figures_but_its_traffic(backbone: Backbone) -> None:
    outcome = run(backbone, SecureEngine(behind(real(backbone)), RULES))
    assert set(outcome.state.client_vectors) == {TOGETHER}
    assert all(set(record.by_client) == {TOGETHER} for record in outcome.state.history)
    assert {record.worst for record in outcome.state.history} == {None}
    assert {item.client for item in outcome.state.traffic} == set(HANDS)
    assert {item.step for item in outcome.state.traffic} == {"vectors", "context", "update", "evaluate", "compare"}


class StoppedError(Exception):
    pass


def test_a_run_that_was_killed_goes_on_to_the_same_adapter(backbone: Backbone, tmp_path: Path) -> None:
    def kill(event: Event) -> None:
        if isinstance(event, RoundDone) and event.record.round == 1:
            raise StoppedError

    file = tmp_path / "state"
    with pytest.raises(StoppedError):
        run(backbone, SecureEngine(behind(real(backbone)), RULES), checkpoint_file=file, observer=kill)
    resumed = run(backbone, SecureEngine(behind(real(backbone)), RULES), checkpoint_file=file, resume=True)
    whole = run(backbone, SecureEngine(behind(real(backbone)), RULES))
    np.testing.assert_array_equal(resumed.coefficients.scales, whole.coefficients.scales)
    assert resumed.state.history == whole.state.history


def test_a_restarted_client_is_sent_the_vectors_again_and_nobody_else_is(backbone: Backbone) -> None:
    pins = {client.name: identity_of(client).public for client in real(backbone)}
    local = LocalEngine([SecureClient(client, pins, RULES) for client in real(backbone)])

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if isinstance(request, RevealRequest) and name == "b" and len(engine.asked(ContextRequest)) == len(HANDS):
            fresh = next(client for client in real(backbone) if client.name == name)
            local._clients[name] = SecureClient(fresh, pins, RULES)
        return reply

    engine = Recording(local, change)
    outcome = run(backbone, SecureEngine(engine, RULES))
    assert engine.asked(ContextRequest) == [*HANDS, "b"]
    assert {item.failure for item in outcome.state.traffic} == {None, "no_context"}
    whole = run(backbone, SecureEngine(behind(real(backbone)), RULES))
    np.testing.assert_array_equal(outcome.coefficients.scales, whole.coefficients.scales)


def test_added_examples_are_taken_in_by_more_rounds(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "state"
    run(backbone, SecureEngine(behind(real(backbone)), RULES), checkpoint_file=file)
    more = {name: (*rows, *tiny.examples(30, seed=99)[20:]) for name, rows in HANDS.items()}
    outcome = run(backbone, SecureEngine(behind(real(backbone, more)), RULES), checkpoint_file=file, more_rounds=2)
    plain = tmp_path / "plain"
    run(backbone, LocalEngine(real(backbone)), rules=None, checkpoint_file=plain)
    expected = run(backbone, LocalEngine(real(backbone, more)), rules=None, checkpoint_file=plain, more_rounds=2)
    assert outcome.state.client_vectors[TOGETHER].examples == sum(
        vectors.examples for vectors in expected.state.client_vectors.values()
    )
    np.testing.assert_allclose(outcome.context.vectors, expected.context.vectors, atol=2.0**-12)
