"""Clients of a secure sum whose replies are drawn, or given by a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import settings

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.refinement import Products
from ifedicl.core.subspace import Context
from ifedicl.core.units import Units
from ifedicl.core.vectors import ContextVectors
from ifedicl.federation import messages
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request, VectorsRequest
from ifedicl.federation.reply_sums import flat
from ifedicl.federation.secure.quantised import layout_of, shaped
from ifedicl.federation.secure.short_form import ShortForm
from ifedicl.federation.secure.sum_client import SecureClient, identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import TOGETHER, PrivacySettings
from tests.support import tiny
from tests.support.endpoints import engine_over, secure_layer
from tests.support.jobs import job_on, one_of_each
from tests.support.readouts import sums_of
from tests.support.scripted import ScriptedClient

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=12)
RULES = PrivacySettings(mode="secure", dropout=0.4, min_examples=2)
LAYERS, WIDTH, CLASSES = 2, 4, 2
SCALES = Coefficients(np.full((LAYERS, 2, 2), 0.5, dtype=np.float32))
ZEROS = Context(np.zeros((LAYERS, 2, WIDTH), dtype=np.float32))


def total_in_form(form_of: ShortForm, replies: Sequence[Reply]) -> Any:
    """The total of replies in a form, through integers and packed bytes."""
    layout = layout_of(form_of.apart(replies[0]))
    form = form_of.form(layout)
    total = np.zeros(form.count, dtype=np.uint64)
    for reply in replies:
        integers = form.integers(flat(form_of.apart(reply)))
        form.check(integers, len(replies))
        total += form.unpacked(form.packed(integers.astype(np.uint64)))
    together = form_of.together(shaped(form.numbers(total), layout))
    assert together is not None
    return together


def secure_job(rules: PrivacySettings = RULES) -> Manifest:
    """A job with these rules of its sums."""
    return job_on(ZEROS, tiny.method(weighting="examples", privacy=rules.model_dump()))


REQUESTS: dict[str, Request] = {**one_of_each(secure_job(), ZEROS, SCALES)}
JOB, CONTEXT = REQUESTS.pop("job"), REQUESTS.pop("context")  # they are not summed
VECTORS = VectorsRequest(secure_job().digest, "")


def drawn_reply(request: Request, draw: np.random.Generator) -> Reply:
    """A random reply that fits the request."""
    count = int(draw.integers(2, 50))
    if isinstance(request, messages.JobRequest):
        return messages.JobReply()
    if isinstance(request, messages.ContextRequest):
        return messages.ContextReply()
    if isinstance(request, VectorsRequest):
        counts = draw.multinomial(count, [0.5, 0.5])
        return messages.VectorsReply(
            ContextVectors.from_wire(draw.normal(size=(2, LAYERS, 2, WIDTH)).astype(np.float32), counts),
            f"{count}:x",
            not request.cursor,
            "float32",
            "float32",
        )
    if isinstance(request, messages.UpdateRequest):
        return messages.UpdateReply(
            Coefficients(draw.normal(size=(LAYERS, 2, 2)).astype(np.float32)), count, float(draw.random())
        )
    if isinstance(request, messages.GradientRequest):
        return messages.GradientReply(GradientSum({"scales": draw.normal(size=(LAYERS, 2, 2)).astype(np.float32)}, count, 1.5))
    if isinstance(request, messages.EvaluateRequest):
        return messages.EvaluateReply(
            (Tally(count, int(draw.integers(count)), float(draw.random() * 9)), Tally(count, 1, 0.25))
        )
    if isinstance(request, messages.StatisticsRequest):
        rows = draw.normal(size=(count, WIDTH + CLASSES))
        return messages.StatisticsReply(sums_of(rows, draw.integers(0, CLASSES, count), CLASSES))
    if isinstance(request, messages.ProductsRequest):
        rows = draw.normal(size=(count, len(request.refinement.centre)))
        return messages.ProductsReply(Products.of(rows, Units.none(rows.shape[1]), request.refinement))
    truth = (count - 1, 1)
    return messages.CompareReply(Comparison(Tally(count, 2, 3.5), Tally(count, 1, 4.25), 0.75, 1, truth, truth[::-1]))


def drawn_client(
    name: str, rule: Callable[[Request], Reply | None] = lambda request: None, examples: int = 50
) -> ScriptedClient:
    """A client that takes every job, and answers all else by ``rule``, or with a reply that its name alone decides."""
    seed = [ord(letter) for letter in name]

    def within_a_job(request: Request) -> Reply | None:
        return None if isinstance(request, messages.JobRequest) else rule(request)

    return ScriptedClient(name, lambda request: drawn_reply(request, np.random.default_rng(seed)), within_a_job, examples)


def fixed(count: int, **options: Any) -> list[Any]:
    """``count`` clients whose replies are drawn; ``options`` are those of :func:`drawn_client`."""
    return [drawn_client(f"c{number}", **options) for number in range(count)]


def failing(code: FailureCode) -> Callable[[Request], Reply]:
    """A rule that fails with this code."""
    return lambda request: Failure(code)


def masking(clients: Sequence[Any], rules: PrivacySettings = RULES, **options: Any) -> list[SecureClient]:
    """The secure layers of clients that pinned each other, before any job."""
    pins = {client.name: identity_of(client).public for client in clients}
    return [secure_layer(client, pins, rules, **options) for client in clients]


def behind(clients: Sequence[ScriptedClient], rules: PrivacySettings = RULES, **options: Any) -> LocalEngine:
    """A local engine over secure clients that have taken a job with these rules."""
    layers = masking(clients, rules, **options)
    for layer in layers:
        layer.handle(messages.JobRequest(secure_job(rules)))
    for client in clients:
        client.asked.clear()
    return engine_over(layers)


def summed(inner: Engine, request: Request, rules: PrivacySettings = RULES) -> Delivery:
    """What the secure engine delivers for one request."""
    (delivery,) = SecureEngine(inner, rules).exchange({TOGETHER: request}, 60.0, {})
    return delivery


def lose(lost: Mapping[str, type[Request]]) -> Callable[[str, Request, Reply], Reply]:
    """These clients' answers to these requests, and to all later ones, never arrive."""
    gone: set[str] = set()

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if isinstance(request, lost.get(name, ())):
            gone.add(name)
        return Failure(FailureCode.LOST) if name in gone else reply

    return change
