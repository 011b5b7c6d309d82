"""A federation without a model: each client's loss has a closed form, so only the server's logic is measured.

A client's loss is the mean squared distance of the coefficients from its own optimum, and of the global vectors from the
layers' writes, weighted by λ. A whole run takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ifedicl import seeds
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.vectors import Array64, ContextVectors
from ifedicl.federation.engine import Delivery
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    ContextReply,
    ContextRequest,
    EvaluateReply,
    EvaluateRequest,
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

LAYERS, WIDTH = 2, 3
FORM = Form(LAYERS)
SHAPE = ModelShape("f" * 64, LAYERS, WIDTH)
NAMES = tuple("abcdefghij")
_EXAMPLES = 10
_STEP = 0.3  # the part of the way to a client's goal that one round covers
_RIGHT = 0.2  # with a lower loss all examples are right, else half
_LARGEST = 1e5


class Landscape:
    """An engine of ten honest clients."""

    def __init__(self, *, spread: float = 0.1, seed: int = 1) -> None:
        """Draw the goals.

        Args:
            spread: standard deviation of the clients' goals around the common goal, whose distance from identity is about 0.5.
            seed: of the draws.
        """
        draw = seeds.generator(seed, "landscape")
        goal = Coefficients.identity(FORM).scales + draw.normal(0.0, 0.5, size=(LAYERS, 2, 2))
        self._writes = draw.normal(size=(LAYERS, 2, WIDTH))
        self._goals = {name: goal + draw.normal(0.0, spread, size=goal.shape) for name in NAMES}
        self._vectors = {name: self._writes + draw.normal(0.0, spread, size=self._writes.shape) for name in NAMES}
        self._context = self._writes

    def clients(self) -> tuple[str, ...]:
        """Names of all clients."""
        return NAMES

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """All replies at once."""
        assert deadline > 0
        assert not heads
        for name, request in requests.items():
            yield Delivery(name, self.answer(name, request), 1, 1, 0.0)

    def loss(self, name: str, coefficients: Coefficients, vectors: Array64 | None = None) -> float:
        """Loss of one client, with its received global vectors unless others are given."""
        used = self._context if vectors is None else vectors
        distance = float(((coefficients.scales - self._goals[name]) ** 2).mean())
        injected = float(((coefficients.scales[..., 0] ** 2)[..., None] * (used - self._writes) ** 2).mean())
        return min(distance + injected, _LARGEST)

    def answer(self, name: str, request: Request) -> Reply:
        """The honest reply."""
        if isinstance(request, JobRequest):
            return JobReply()
        if isinstance(request, VectorsRequest):
            means = self._vectors[name][None].astype(np.float32)
            vectors = ContextVectors.from_wire(means, np.array([_EXAMPLES]))
            return VectorsReply(vectors, f"{_EXAMPLES}:x", True, "float32", "float32")
        if isinstance(request, ContextRequest):
            self._context = request.context.vectors.astype(np.float64)
            return ContextReply()
        if isinstance(request, UpdateRequest):
            moved = request.coefficients.scales + _STEP * (self._goals[name] - request.coefficients.scales)
            return UpdateReply(Coefficients(moved.astype(np.float32)), _EXAMPLES, self.loss(name, request.coefficients))
        assert isinstance(request, EvaluateRequest | CompareRequest)
        tally = _tally(self.loss(name, request.coefficients))
        return EvaluateReply((tally,)) if isinstance(request, EvaluateRequest) else CompareReply(self._comparison(name, tally))

    def _comparison(self, name: str, tally: Tally) -> Comparison:
        raw, half = _tally(self.loss(name, Coefficients.identity(FORM))), _EXAMPLES // 2
        answers = (half, half) if tally.correct == _EXAMPLES else (_EXAMPLES, 0)
        gains = _EXAMPLES * (tally.loss - raw.loss) ** 2
        return Comparison(tally, raw, gains, abs(tally.correct - raw.correct), (half, half), answers)


def _tally(loss: float) -> Tally:
    return Tally(_EXAMPLES, _EXAMPLES if loss < _RIGHT else _EXAMPLES // 2, _EXAMPLES * loss)
