"""Clients behind secure doors whose replies are given, and an engine that records what crosses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import settings

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import ReadoutSums
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Role
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    ContextReply,
    ContextRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    GradientReply,
    GradientRequest,
    Reply,
    Request,
    StatisticsReply,
    StatisticsRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
)
from ifedicl.federation.secure.sum_client import identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import TOGETHER, PrivacySettings
from tests.support import tiny
from tests.support.endpoints import engine_over, secure_layer

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=12)
RULES = PrivacySettings(mode="secure", dropout=0.4, min_examples=2)
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
    dtype: str = "float32"

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

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        for delivery in self.inner.exchange(requests, deadline, heads):
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
    return engine_over([secure_layer(client, pins, rules, **options) for client in clients])


def summed(inner: Engine, request: Request, rules: PrivacySettings = RULES) -> Delivery:
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
