"""An engine whose clients answer by a rule: λ counts the rounds, so a rule can tell what it is asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import ACTIVATION, CONTEXT, Coefficients
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Role
from ifedicl.federation.engine import Delivery
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    ContextReply,
    ContextRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
)
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import Method
from tests.support import tiny

# Scripted clients: λ counts the rounds, so a rule can tell what it is asked about

LAYERS, WIDTH = 2, 4
SHAPE = ModelShape("f" * 64, LAYERS, WIDTH)
ONE_GROUP = (1, LAYERS, 2, WIDTH)


def scripted_method(**sections: Any) -> Method:
    sections = {"injection": {"context_scale": 0.0}, "calibration": {}, **sections}
    return tiny.method(**sections)


def round_of(coefficients: Coefficients) -> int:
    return round(float(coefficients.scales[0, 0, CONTEXT]))


def scales(context: float, activation: float = 1.0, layers: int = LAYERS) -> Coefficients:
    values = np.empty((layers, 2, 2), dtype=np.float32)
    values[..., CONTEXT], values[..., ACTIVATION] = context, activation
    return Coefficients(values)


def vectors_reply(value: float = 1.0, count: int = 4, shape: tuple[int, ...] = ONE_GROUP) -> VectorsReply:
    means = np.full(shape, value, dtype=np.float32)
    return VectorsReply(ContextVectors.from_wire(means, np.full(shape[0], count)), f"{count}:x", True, "float32", "float32")


@dataclass
class Scripted:
    """An engine whose clients answer by a rule; ``None`` from a rule means the usual answer."""

    names: tuple[str, ...] = ("a", "b", "c")
    vectors: Callable[[str, VectorsRequest], Reply | None] = lambda name, request: None
    update: Callable[[str, UpdateRequest], Reply | None] = lambda name, request: None
    evaluate: Callable[[str, EvaluateRequest], Reply | None] = lambda name, request: None
    compare: Callable[[str, CompareRequest], Reply | None] = lambda name, request: None
    asked: list[tuple[str, Request]] = field(default_factory=list)

    def clients(self) -> tuple[str, ...]:
        return self.names

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        for name, request in requests.items():
            self.asked.append((name, request))
            yield Delivery(name, self.answer(name, request), 10, 20, 0.5)

    def answer(self, name: str, request: Request) -> Reply:
        if isinstance(request, VectorsRequest):
            return self.vectors(name, request) or vectors_reply()
        if isinstance(request, ContextRequest):
            return ContextReply()
        if isinstance(request, UpdateRequest):
            return self.update(name, request) or UpdateReply(scales(round_of(request.coefficients) + 1), 4, 0.5)
        if isinstance(request, CompareRequest):
            return self.compare(name, request) or compared(0.25, examples=4)
        assert isinstance(request, EvaluateRequest)
        return self.evaluate(name, request) or EvaluateReply((Tally(4, 2, 3.0),))

    def asked_for(self, kind: type[Request]) -> list[tuple[str, Any]]:
        return [(name, request) for name, request in self.asked if isinstance(request, kind)]


def held_out(*tallies: tuple[int, float]) -> Callable[[str, EvaluateRequest], Reply | None]:
    """Client ``a`` has ten selection examples: (correct, loss sum) after each round; the others have none."""

    def evaluate(name: str, request: EvaluateRequest) -> Reply | None:
        if name != "a" or request.role is not Role.SELECTION:
            return Failure(FailureCode.NO_EXAMPLES)
        number = round_of(request.coefficients)
        return EvaluateReply((Tally(10, *tallies[number - 1]),)) if number else EvaluateReply((Tally(10, 5, 7.0),))

    return evaluate


# The choice of a round

COURSE = [(5, 6.0), (8, 9.0), (6, 4.0), (8, 8.0), (7, 5.0)]


# The gate


def compared(
    gain: float, *, spread: float = 0.1, right: int = 0, wrong: int = 0, examples: int = 20, known: int | None = None
) -> CompareReply:
    """An adapter whose mean loss is lower than the raw model's by ``gain``, and which is right or wrong where that is not.

    The raw model is right on ``known`` examples, three quarters unless given; half of them have each label, and half get each.
    """
    known, squares = 3 * examples // 4 if known is None else known, examples * (gain**2 + spread**2)
    adapter, raw = Tally(examples, known + right - wrong, examples * (2.0 - gain)), Tally(examples, known, examples * 2.0)
    halves = (examples // 2, examples - examples // 2)
    return CompareReply(Comparison(adapter, raw, squares, right + wrong, halves, halves))
