"""What a client refuses within a secure sum, and how it keeps small groups apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.vectors import ContextVectors
from ifedicl.errors import SecureSumError
from ifedicl.federation.client import Client
from ifedicl.federation.messages import (
    AgreeReply,
    BeginReply,
    BeginRequest,
    ContextReply,
    DealReply,
    DealRequest,
    Failure,
    FailureCode,
    GradientReply,
    JobReply,
    JobRequest,
    MaskRequest,
    Reply,
    Request,
    RevealReply,
    UpdateReply,
    VectorsReply,
    VectorsRequest,
    encode,
)
from ifedicl.federation.reply_sums import Total
from ifedicl.federation.secure.sum_client import SecureClient, identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.settings import TOGETHER, PrivacySettings
from tests.support import tiny
from tests.support.endpoints import secure_layer
from tests.support.engines import RecordingEngine
from tests.support.jobs import job_on
from tests.support.private import private_method
from tests.support.secure import (
    CONTEXT,
    JOB,
    LAYERS,
    REQUESTS,
    RULES,
    VECTORS,
    WIDTH,
    ZEROS,
    behind,
    drawn_client,
    fixed,
    secure_job,
    summed,
)

# What a client refuses


def without_a_job(rules: PrivacySettings = RULES, **options: Any) -> SecureClient:
    clients = fixed(3, **options)
    return secure_layer(clients[0], {client.name: identity_of(client).public for client in clients}, rules)


def secure_client(**options: Any) -> SecureClient:
    """A client that has taken a job with its own rules."""
    layer = without_a_job(**options)
    assert layer.handle(JOB).reply == JobReply()
    return layer


def fixed_of(layer: SecureClient) -> Any:
    """The scripted client behind it."""
    return layer._client


def begin(session: str = "a", request: Request = REQUESTS["update"]) -> BeginRequest:
    return BeginRequest(hashlib.sha256(session.encode()).digest()[:16], encode(request))


def answer_to_a_job(own: PrivacySettings, **changes: Any) -> tuple[Reply, Reply]:
    """What a client with these rules replies to a job with others, and then to a sum."""
    layer = without_a_job(own)
    taken = layer.handle(JobRequest(secure_job(own.model_copy(update=changes)))).reply
    return taken, layer.handle(begin()).reply


def test_a_secure_client_answers_no_plain_request_and_an_open_one_no_secure_request(backbone: Backbone) -> None:
    for request in REQUESTS.values():
        assert secure_client().handle(request).reply == Failure(FailureCode.OTHER_MODE)
    assert isinstance(secure_client().handle(CONTEXT).reply, ContextReply)
    plain = Client("a", tiny.examples(6), backbone, secret=b"s")
    assert plain.handle(begin()) == Failure(FailureCode.OTHER_MODE)


@pytest.mark.parametrize(
    "weaker",
    [{"min_survivors": 3}, {"dropout": 0.45}, {"colluders": 0}, {"mode": "open"}],
    ids=lambda change: next(iter(change)),
)
def test_a_client_takes_no_weaker_rules_than_its_own_and_stricter_ones(weaker: dict[str, Any]) -> None:
    own = RULES.model_copy(update={"min_survivors": 4})
    assert answer_to_a_job(own, **weaker) == (Failure(FailureCode.OTHER_MODE), Failure(FailureCode.NO_CONTEXT))
    taken, begun = answer_to_a_job(own, min_survivors=5, dropout=0.0, colluders=2)
    assert taken == JobReply()
    assert isinstance(begun, BeginReply)


def test_a_client_takes_no_job_without_rules_of_sums() -> None:
    layer = without_a_job()
    assert layer.handle(JobRequest(job_on(ZEROS, tiny.method()))).reply == Failure(FailureCode.OTHER_MODE)
    assert layer.handle(begin()).reply == Failure(FailureCode.NO_CONTEXT)
    assert fixed_of(layer).asked == [], "the client itself was not asked"


def test_a_refused_job_leaves_the_present_one_and_its_rules_in_place() -> None:
    layer = without_a_job()
    stricter = RULES.model_copy(update={"min_examples": 30})
    assert layer.handle(JobRequest(secure_job(stricter))).reply == JobReply()
    weaker = RULES.model_copy(update={"dropout": 0.45})
    assert layer.handle(JobRequest(secure_job(weaker))).reply == Failure(FailureCode.OTHER_MODE)
    fixed_of(layer).rule = vectors_of(29)
    assert layer.handle(begin("few", VECTORS)).reply == Failure(FailureCode.TOO_FEW)
    fixed_of(layer).rule = vectors_of(30)
    assert isinstance(layer.handle(begin("enough", VECTORS)).reply, BeginReply)


def test_a_new_job_ends_the_sum_that_is_under_way() -> None:
    layer = secure_client()
    begun = layer.handle(begin()).reply
    assert isinstance(begun, BeginReply)
    assert layer.handle(JOB).reply == JobReply()
    assert layer.handle(MaskRequest(begin().session, ())).reply == Failure(FailureCode.PROTOCOL)


def test_a_client_without_noise_to_add_takes_no_part_in_a_run_that_promises_noise() -> None:
    noisy = job_on(ZEROS, private_method())
    assert noisy.method.promises_noise
    layer = without_a_job()
    assert layer.handle(JobRequest(noisy)).reply == Failure(FailureCode.OTHER_MODE)
    assert fixed_of(layer).asked == [], "its rules alone are why"


@pytest.mark.parametrize("inner", [JOB, CONTEXT, begin("inner")], ids=["job", "context", "sum"])
def test_what_cannot_be_summed_is_not_answered_within_a_sum(inner: Request) -> None:
    assert secure_client().handle(begin(request=inner)).reply == Failure(FailureCode.PROTOCOL)


def test_bytes_that_are_no_request_are_refused() -> None:
    assert secure_client().handle(BeginRequest(bytes(16), b"torn")).reply == Failure(FailureCode.PROTOCOL)


def test_a_roster_of_too_few_is_refused() -> None:
    clients = fixed(2)
    layers = [secure_layer(client, {own.name: identity_of(own).public for own in clients}, RULES) for client in clients]
    for own in layers:
        own.handle(JOB)
    told = []
    for number, own in enumerate(layers):
        reply = own.handle(replace(begin(), introduce=True)).reply
        assert isinstance(reply, BeginReply)
        told.append((number, own.name, reply.channel[:32], reply.channel[32:]))
    assert layers[0].handle(DealRequest(begin().session, (0, 1), tuple(told))).reply == Failure(FailureCode.PROTOCOL)


def test_replayed_messages_of_this_and_of_earlier_sums_are_refused() -> None:
    engine = RecordingEngine(behind(fixed(4)))
    secure = SecureEngine(engine, RULES)
    for _ in range(2):
        list(secure.exchange({TOGETHER: REQUESTS["update"]}, 60.0, {}))
    for name, request, _ in list(engine.crossed):
        (delivery,) = engine.inner.exchange({name: request}, 60.0, {})
        assert delivery.reply == Failure(FailureCode.PROTOCOL), request.kind


def test_masked_numbers_are_asked_for_once() -> None:
    # The same masks over the answers to two requests would give their difference away.
    twice: list[Reply] = []

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if isinstance(request, MaskRequest) and name == "c0":
            twice.extend(delivery.reply for delivery in engine.inner.exchange({name: request}, 60.0, {}))
        return reply

    engine = RecordingEngine(behind(fixed(5)), change)
    delivery = summed(engine, REQUESTS["update"])  # c0 has left the sum: it is lost before it reveals
    assert twice == [Failure(FailureCode.PROTOCOL)]
    assert [part.client for part in delivery.parts if isinstance(part.reply, Failure)] == ["c0"]


def damage(kind: type[Reply]) -> Callable[[str, Request, Reply], Reply]:
    """What turns every reply of this kind from c1 into a damaged one."""

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if name != "c1" or not isinstance(reply, kind):
            return reply
        if isinstance(reply, BeginReply):
            return replace(reply, channel=bytes([reply.channel[0] ^ 1]) + reply.channel[1:])
        if isinstance(reply, DealReply):
            return replace(reply, deal=bytes([reply.deal[0] ^ 1]) + reply.deal[1:])
        if isinstance(reply, AgreeReply):
            return replace(reply, tags=bytes([reply.tags[0] ^ 1]) + reply.tags[1:])
        assert isinstance(reply, RevealReply)
        return replace(reply, own=bytes([reply.own[0] ^ 1]) + reply.own[1:])

    return change


@pytest.mark.parametrize(("kind", "tries"), [(BeginReply, 2), (DealReply, 1), (AgreeReply, 1), (RevealReply, 1)])
def test_a_damaged_message_no_longer_ends_the_sum_and_the_total_is_right(kind: type[Reply], tries: int) -> None:
    """With a damaged key the sum is tried again without that client. A damaged tag does not count."""
    clients = fixed(4)
    engine = RecordingEngine(behind(clients), damage(kind))
    reply = summed(engine, REQUESTS["update"]).reply
    total = Total(UpdateReply)
    for client in clients:
        if tries == 1 or client.name != "c1":
            total.add(client.given["update"])
    assert isinstance(reply, UpdateReply)
    assert isinstance(total.reply, UpdateReply)
    assert reply.examples == total.reply.examples
    np.testing.assert_allclose(reply.coefficients.scales, total.reply.coefficients.scales, atol=1e-6)
    assert len({request.session for _, request, _ in engine.crossed if isinstance(request, BeginRequest)}) == tries


def test_a_damaged_share_without_a_spare_one_ends_in_an_abort_and_not_in_a_wrong_total() -> None:
    """All of 3 clients must survive: nobody's secret can be reconstructed. With spare shares see test_bad_shares.py."""
    with pytest.raises(SecureSumError, match="who changed them cannot be told"):
        summed(RecordingEngine(behind(fixed(3)), damage(RevealReply)), REQUESTS["update"])


def test_replies_of_another_session_are_not_taken() -> None:
    engine = RecordingEngine(behind(fixed(5)), lambda name, request, reply: reply)
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
    assert secure_client(examples=1).handle(begin(request=REQUESTS[kind])).reply == Failure(FailureCode.TOO_FEW)
    assert isinstance(secure_client(examples=2).handle(begin(request=REQUESTS[kind])).reply, BeginReply)


def test_a_single_added_example_stays_out_until_there_are_more() -> None:
    client = secure_client()
    first = client.handle(begin("first", VECTORS)).reply
    assert isinstance(first, BeginReply)
    for count, expected in ((1, Failure), (2, BeginReply)):
        fixed_of(client).rule = vectors_of(count)
        reply = client.handle(replace(begin(f"{count} more", VECTORS), cursor=first.cursor)).reply
        assert isinstance(reply, expected), count


def test_changed_examples_are_not_summed_again_since_both_sums_could_be_subtracted() -> None:
    client = secure_client()
    first = client.handle(begin("first", VECTORS)).reply
    assert isinstance(first, BeginReply)
    fixed_of(client).rule = vectors_of(30, replaces=True)
    assert client.handle(replace(begin("second", VECTORS), cursor=first.cursor)).reply == Failure(FailureCode.CHANGED)


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
    assert secure_client().handle(replace(begin(request=VECTORS), cursor="ab" * 92)).reply == Failure(FailureCode.PROTOCOL)


def test_a_client_keeps_back_an_update_that_is_too_long_and_numbers_that_do_not_fit() -> None:
    far = Coefficients(np.full((LAYERS, 2, 2), 90.0, dtype=np.float32))
    reply = secure_client(rule=lambda request: UpdateReply(far, 5, 0.5)).handle(begin()).reply
    assert reply == Failure(FailureCode.PROTOCOL)
    huge = [
        drawn_client(f"h{number}", rule=lambda request: GradientReply(GradientSum({"scales": far.scales * 1e6}, 5, 0.5)))
        for number in range(1)
    ]
    delivery = summed(behind([*fixed(4), *huge]), REQUESTS["gradient"])
    assert [part.client for part in delivery.parts if isinstance(part.reply, Failure)] == ["h0"]
