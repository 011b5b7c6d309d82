"""The total of a secure sum, and that nothing but keys, shares and masked numbers crosses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.vectors import pooled
from ifedicl.errors import TooFewClientsError
from ifedicl.federation.client_pool import advance_head
from ifedicl.federation.engine import Delivery
from ifedicl.federation.messages import (
    AgreeReply,
    AgreeRequest,
    BeginReply,
    BeginRequest,
    CompareReply,
    DealReply,
    DealRequest,
    Envelope,
    EvaluateReply,
    Failure,
    FailureCode,
    GradientReply,
    GradientRequest,
    JobReply,
    MaskReply,
    MaskRequest,
    ProductsReply,
    Reply,
    Request,
    RevealReply,
    RevealRequest,
    StatisticsReply,
    StatisticsRequest,
    UpdateReply,
    VectorsReply,
    VectorsRequest,
    decode_reply,
    encode,
)
from ifedicl.federation.reply_sums import Total
from ifedicl.federation.secure.quantised import SUMS, layout_of
from ifedicl.federation.secure.sum_client import identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.ledger.entries import Head
from ifedicl.ledger.receipts import Receipt
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import TOGETHER
from tests.support.endpoints import engine_over, secure_layer
from tests.support.engines import RecordingEngine
from tests.support.readouts import sums_of
from tests.support.scripted import ScriptedClient
from tests.support.secure import JOB, REPEATABLE, REQUESTS, RULES, VECTORS, behind, drawn_client, failing, fixed, lose, summed
from tests.support.uniform import NEVER, uniform_p

# Ledgers


def test_a_ledger_in_anothers_place_is_never_believed() -> None:
    """The client gets the known head of its ledger at each sum, until the ledger has it again."""
    own, other, sent = Head(5, "a" * 64), Head(1, "b" * 64), list[Head | None]()

    class Ledgers(RecordingEngine):
        def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
            for delivery in super().exchange(requests, deadline, heads):
                if delivery.client != "c0":
                    yield delivery
                    continue
                if isinstance(requests["c0"], BeginRequest):
                    sent.append(heads.get("c0"))
                if len(sent) == 1:
                    yield replace(delivery, receipt=Receipt(own, "0" * 64))
                else:
                    yield replace(delivery, reply=Failure(FailureCode.LEDGER), receipt=Receipt(other, "0" * 64))

    engine, heads = SecureEngine(Ledgers(behind(fixed(5))), RULES), dict[str, Head]()
    for _ in range(4):
        (delivery,) = engine.exchange({TOGETHER: REQUESTS["update"]}, 60.0, heads)
        for part in delivery.parts:
            advance_head(heads, part)
    assert sent == [None, own, own, own]


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
    if isinstance(first, StatisticsReply | ProductsReply):
        total: Total[Any] = Total(type(first))
        for reply in sent:
            total.add(reply)
        added: Reply | None = total.reply
        assert added is not None
        return added
    return CompareReply(sum((reply.comparison for reply in replies), Comparison()))


def assert_same_sums(kind: str, total: Reply, plain: Reply, clients: int) -> None:
    """Equal to half a step for each client; counts exactly."""
    own = SUMS[type(REQUESTS[kind])]
    step = own.grid.step
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
    turn = st.sampled_from([DealRequest, MaskRequest, AgreeRequest, RevealRequest])
    lost = {f"c{number}": data.draw(turn) for number in gone}
    clients = fixed(count)

    delivery = summed(RecordingEngine(behind(clients), lose(lost)), REQUESTS["update"])

    in_it = [client for client in clients if lost.get(client.name) not in (DealRequest, MaskRequest)]
    assert_same_sums("update", delivery.reply, together([client.given["update"] for client in in_it]), count)
    assert {part.client for part in delivery.parts if isinstance(part.reply, Failure)} == set(lost)


@pytest.mark.parametrize("at", [BeginRequest, DealRequest, MaskRequest, AgreeRequest, RevealRequest])
def test_beyond_the_threshold_the_sum_is_given_up_and_says_why(at: type[Request]) -> None:
    lost = dict.fromkeys(["c0", "c1", "c2"], at)  # of 5, with a threshold of 4
    needed = RULES.min_survivors if at is BeginRequest else RULES.threshold(5)
    engine = RecordingEngine(behind(fixed(5)), lose(lost))
    with pytest.raises(
        TooFewClientsError, match=rf"2 clients .*{needed} are needed.*c0: lost, c1: lost, c2: lost.*Nothing was revealed"
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
    delivery = summed(RecordingEngine(behind(clients), lose(lost)), REQUESTS["gradient"])
    assert_same_sums("gradient", delivery.reply, together([client.given["gradient"] for client in clients[6:]]), 10)


def test_nobody_with_examples_is_no_failure_of_the_sum() -> None:
    delivery = summed(behind(fixed(4, rule=failing(FailureCode.NO_EXAMPLES))), REQUESTS["compare"])
    assert delivery.reply == Failure(FailureCode.NO_EXAMPLES)


def test_too_few_with_examples_is_one() -> None:
    clients = [*fixed(2), *(drawn_client(name, rule=failing(FailureCode.NO_EXAMPLES)) for name in "xyz")]
    with pytest.raises(TooFewClientsError, match="2 clients have something to add, 3 are needed"):
        summed(behind(clients), REQUESTS["compare"])


def test_a_readout_that_owners_forbid_is_no_failure_of_the_run() -> None:
    codes = (FailureCode.REFUSED, FailureCode.TOO_FEW)
    forbidding = [drawn_client(code.value, rule=failing(code)) for code in codes]
    delivery = summed(behind([*fixed(2), *forbidding]), REQUESTS["statistics"])
    assert delivery.reply == Failure(FailureCode.REFUSED)
    with pytest.raises(TooFewClientsError):  # a round cannot be done without
        summed(behind([*fixed(2), *forbidding]), REQUESTS["update"])


def with_stricter_owners(strict: set[str], clients: Sequence[ScriptedClient]) -> RecordingEngine:
    """An engine over secure clients, some of whose owners require four survivors, after the job with :data:`RULES`."""
    pins = {client.name: identity_of(client).public for client in clients}
    stricter = RULES.model_copy(update={"min_survivors": 4})
    layers = [secure_layer(client, pins, stricter if client.name in strict else RULES) for client in clients]
    return RecordingEngine(engine_over(layers))


def test_a_client_that_refuses_the_job_is_asked_for_no_sum() -> None:
    clients = fixed(4)
    engine = with_stricter_owners({"c3"}, clients)
    secure = SecureEngine(engine, RULES)
    (job,) = secure.exchange({TOGETHER: JOB}, 60.0, {})
    assert job.reply == JobReply(), "one that takes it stands for all"
    assert [(part.client, part.reply) for part in job.parts if isinstance(part.reply, Failure)] == [
        ("c3", Failure(FailureCode.OTHER_MODE))
    ]
    (delivery,) = secure.exchange({TOGETHER: REQUESTS["update"]}, 60.0, {})
    assert_same_sums("update", delivery.reply, together([client.given["update"] for client in clients[:3]]), 3)
    assert engine.asked(BeginRequest) == ["c0", "c1", "c2"]


def test_where_too_few_take_the_job_their_codes_are_named() -> None:
    secure = SecureEngine(with_stricter_owners({"c2", "c3"}, fixed(4)), RULES)
    list(secure.exchange({TOGETHER: JOB}, 60.0, {}))
    with pytest.raises(TooFewClientsError, match=r"2 clients .*3 are needed.*c2: other_mode, c3: other_mode"):
        list(secure.exchange({TOGETHER: REQUESTS["update"]}, 60.0, {}))


def test_a_client_with_another_layout_is_left_out() -> None:
    odd = drawn_client("odd", rule=lambda request: EvaluateReply((Tally(5, 1, 1.0),)))
    clients = [*fixed(4), odd]
    delivery = summed(behind(clients), REQUESTS["evaluate"])
    assert_same_sums("evaluate", delivery.reply, together([client.given["evaluate"] for client in clients[:4]]), 4)


def test_noise_is_added_before_masking_and_lands_in_the_total() -> None:
    asked: list[tuple[str, int]] = []

    class Same:
        def noise(self, kind: str, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
            asked.append((kind, size))
            return np.full(size, 7000, dtype=np.int64)

    quiet, loud = (summed(behind(fixed(4), noise=added), REQUESTS["gradient"]).reply for added in (None, Same()))
    assert isinstance(quiet, GradientReply)
    assert isinstance(loud, GradientReply)
    assert asked == [("gradient", 10)] * 4
    added = loud.sums.arrays["scales"].astype(np.float64) - quiet.sums.arrays["scales"]
    np.testing.assert_allclose(added, 4 * 7000 * SUMS[GradientRequest].grid.step, atol=2.0**-22)


# What crosses


@pytest.mark.parametrize("kind", REQUESTS)
def test_only_keys_shares_and_masked_numbers_cross(kind: str) -> None:
    engine = RecordingEngine(behind(fixed(4)))
    summed(engine, REQUESTS[kind])
    crossed = [type(reply) for name, _, reply in engine.crossed if name == "c0"]
    assert crossed == [BeginReply, DealReply, MaskReply, AgreeReply, RevealReply]
    begin = next(reply for name, _, reply in engine.crossed if name == "c0" and isinstance(reply, BeginReply))
    assert begin.dtype == "float32"
    # Nothing of a reply is in what goes before the masked numbers: two clients with other numbers say the same.
    other = next(reply for name, _, reply in engine.crossed if name == "c1" and isinstance(reply, BeginReply))
    assert begin.layout == other.layout
    assert len(encode(begin)) == len(encode(other))


def test_recorded_traffic_of_one_client_and_its_difference_over_two_rounds_is_uniform() -> None:
    rows = 20_000
    same = StatisticsReply(sums_of(np.ones((40, 300)), np.zeros(40, dtype=np.int64)))
    masked: list[bytes] = []
    for _ in range(2):
        engine = RecordingEngine(behind(fixed(4, rule=lambda request: same)))
        summed(engine, REQUESTS["statistics"])
        masked += [reply.masked for name, _, reply in engine.crossed if name == "c2" and isinstance(reply, MaskReply)]
    first, second = masked
    summed_as = SUMS[StatisticsRequest]
    form = summed_as.form(layout_of(summed_as.rule.apart(same)))
    assert form.count > rows
    assert uniform_p(first) > NEVER
    assert uniform_p(form.packed(form.unpacked(first) - form.unpacked(second))) > NEVER
    assert first != second


def test_a_cursor_tells_nothing_and_comes_back_as_it_was() -> None:
    asked: list[str] = []

    def rule(request: Request) -> Reply | None:
        assert isinstance(request, VectorsRequest)
        asked.append(request.cursor)
        return None

    clients = [drawn_client("few", examples=3, rule=rule), drawn_client("many", examples=9_999_999), *fixed(2)]
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
    inner = RecordingEngine(behind(fixed(4)))
    delivery = summed(inner, REQUESTS["update"])
    assert [part.client for part in delivery.parts] == ["c0", "c1", "c2", "c3"]
    sent = sum(Envelope.of(reply).size for name, _, reply in inner.crossed if name == "c0")
    received = sum(Envelope.of(request).size for name, request, _ in inner.crossed if name == "c0")
    assert (delivery.parts[0].bytes_up, delivery.parts[0].bytes_down) == (sent, received)
    assert delivery.bytes_up == sum(part.bytes_up for part in delivery.parts)
