"""A client and an engine that answer by a rule, and replies for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

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
    JobReply,
    JobRequest,
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

# λ counts the rounds, so a rule can read the round from a request's coefficients

LAYERS, WIDTH = 2, 4
SHAPE = ModelShape("f" * 64, LAYERS, WIDTH)
ONE_GROUP = (1, LAYERS, 2, WIDTH)


def scripted_method(**sections: Any) -> Method:
    """A method whose λ begins at 0; sections override."""
    sections = {"injection": {"context_scale": 0.0}, "calibration": {}, **sections}
    return tiny.method(**sections)


def round_of(coefficients: Coefficients) -> int:
    """The round that λ counts."""
    return round(float(coefficients.scales[0, 0, CONTEXT]))


def scales(context: float, activation: float = 1.0, layers: int = LAYERS) -> Coefficients:
    """Coefficients with the same two scales everywhere, shape (layers, 2, 2)."""
    values = np.empty((layers, 2, 2), dtype=np.float32)
    values[..., CONTEXT], values[..., ACTIVATION] = context, activation
    return Coefficients(values)


def vectors_reply(value: float = 1.0, count: int = 4, shape: tuple[int, ...] = ONE_GROUP) -> VectorsReply:
    """Vectors of one value, for ``count`` examples a class; ``shape`` is (classes, layers, 2, width)."""
    means = np.full(shape, value, dtype=np.float32)
    return VectorsReply(ContextVectors.from_wire(means, np.full(shape[0], count)), f"{count}:x", True, "float32", "float32")


@dataclass
class ScriptedClient:
    """A client that answers by ``rule``, or by ``usual`` where the rule gives ``None``.

    It knows the first examples of any cursor ``N:mark`` up to its own number.

    Attributes:
        usual: gives the usual reply; the first one to each kind of request is kept in ``given``.
        seconds: which examples are of the second class.
        asked: all requests so far.
    """

    name: str
    usual: Callable[[Request], Reply]
    rule: Callable[[Request], Reply | None] = lambda request: None
    examples: int = 20
    mark: str = "x"
    seconds: Sequence[int] = range(1, 1000, 2)
    dtype: str = "float32"
    split: str = "usual"
    given: dict[str, Reply] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    spent_epsilon: None = None

    def handle(self, request: Request) -> Reply:
        """The reply of the rule, or the usual one."""
        self.asked.append(request)
        reply = self.rule(request)
        if reply is None:
            reply = self.given.setdefault(request.kind, self.usual(request))
        return reply

    def cursor(self, role: Role) -> str:
        """The number of examples and the mark, whatever the role."""
        return f"{self.examples}:{self.mark}"

    def examples_behind(self, cursor: str, role: Role) -> npt.NDArray[np.int64]:
        """The examples of each class behind a cursor; none if the cursor is not this client's."""
        count = int(cursor.partition(":")[0])
        known = count if count <= self.examples and cursor.endswith(self.mark) else 0
        second = len([place for place in self.seconds if place < known])
        return np.array([known - second, second])

    def count(self, role: Role) -> int:
        """The number of examples, whatever the role."""
        return self.examples

    def secret_for(self, purpose: str) -> bytes:
        """A secret of 32 bytes that follows from name and purpose."""
        return (self.name + purpose).encode().ljust(32)[:32]


@dataclass
class ScriptedEngine:
    """An engine whose clients answer by a rule; where the rule gives ``None``, they give the usual reply."""

    names: tuple[str, ...] = ("a", "b", "c")
    vectors: Callable[[str, VectorsRequest], Reply | None] = lambda name, request: None
    update: Callable[[str, UpdateRequest], Reply | None] = lambda name, request: None
    evaluate: Callable[[str, EvaluateRequest], Reply | None] = lambda name, request: None
    compare: Callable[[str, CompareRequest], Reply | None] = lambda name, request: None
    asked: list[tuple[str, Request]] = field(default_factory=list)

    def clients(self) -> tuple[str, ...]:
        """The names, in order."""
        return self.names

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """One delivery for each request, in order."""
        for name, request in requests.items():
            self.asked.append((name, request))
            yield Delivery(name, self.answer(name, request), 10, 20, 0.5)

    def answer(self, name: str, request: Request) -> Reply:
        """The reply of the rule for this kind of request, or the usual one."""
        if isinstance(request, JobRequest):
            return JobReply()
        if isinstance(request, VectorsRequest):
            return self.vectors(name, request) or vectors_reply()
        if isinstance(request, ContextRequest):
            return ContextReply()
        if isinstance(request, UpdateRequest):
            return self.update(name, request) or UpdateReply(scales(round_of(request.coefficients) + 1), 4, 0.5)
        if isinstance(request, CompareRequest):
            return self.compare(name, request) or compared(0.25, examples=4)
        assert isinstance(request, EvaluateRequest)
        usual = Tally(4, 1, 9.0) if request.coefficients.is_identity else Tally(4, 2, 3.0)
        return self.evaluate(name, request) or EvaluateReply((usual,))

    def asked_for(self, kind: type[Request]) -> list[tuple[str, Any]]:
        """The clients that got this kind of request, with the requests."""
        return [(name, request) for name, request in self.asked if isinstance(request, kind)]


def held_out(*tallies: tuple[int, float]) -> Callable[[str, EvaluateRequest], Reply | None]:
    """Client ``a`` has ten selection examples: (correct, loss sum) after each round; the others have none."""

    def evaluate(name: str, request: EvaluateRequest) -> Reply | None:
        if name != "a":
            return Failure(FailureCode.NO_EXAMPLES)
        number = round_of(request.coefficients)
        return EvaluateReply((Tally(10, *tallies[number - 1]),)) if number else EvaluateReply((Tally(10, 5, 20.0),))

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
