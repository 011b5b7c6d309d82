"""Clients that lie, to measure which lies defeat an aggregation. They see the honest replies first, and collude."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.vectors import ContextVectors
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    EvaluateReply,
    EvaluateRequest,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
)
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Comparison, Tally

Numbers: TypeAlias = npt.NDArray[np.float64]
Lie: TypeAlias = Callable[[Numbers, Numbers], Numbers]
"""The numbers that all liars send, from ``(K, ...)`` honest numbers and the ``(...)`` numbers before the round."""

_MANY = 2**20
_SURE = 5.0  # nats by which the liars report the raw model as worse


def _flipped(honest: Numbers, before: Numbers) -> Numbers:
    lie: Numbers = before - (honest.mean(axis=0) - before)
    return lie


def _thousandfold(honest: Numbers, before: Numbers) -> Numbers:
    lie: Numbers = before - 1000.0 * (honest.mean(axis=0) - before)
    return lie


def _edge(honest: Numbers, before: Numbers) -> Numbers:
    """For each number, the honest value farthest in the wrong direction: a trimmed mean cannot detect it."""
    lie: Numbers = np.where(honest.mean(axis=0) > before, honest.min(axis=0), honest.max(axis=0))
    return lie


def _long(honest: Numbers, before: Numbers) -> Numbers:
    """The wrong direction, with the median client's length: a bound on lengths does not shorten it."""
    change = honest.mean(axis=0) - before
    lengths = np.linalg.norm((honest - before).reshape(len(honest), -1), axis=1)
    lie: Numbers = before - change * (float(np.median(lengths)) / max(float(np.linalg.norm(change)), 1e-12))
    return lie


LIES: Mapping[str, Lie] = {
    "flipped": _flipped,
    "flipped, a thousandfold": _thousandfold,
    "at the edge of the honest": _edge,
    "as long as the median": _long,
}


class Colluding:
    """An engine of which some clients lie."""

    def __init__(
        self,
        engine: Engine,
        liars: Sequence[str],
        *,
        updates: Lie | None = None,
        vectors: Lie | None = None,
        praise: bool = True,
    ) -> None:
        """Wrap an engine of honest clients.

        Args:
            engine: of the honest clients.
            liars: names of the clients whose replies are replaced.
            updates: the lie in place of coefficients; None: the honest reply.
            vectors: the lie in place of context vectors; None: the honest reply.
            praise: whether they claim a million held-out examples on which every adapter is right and the raw model wrong.
        """
        self._engine = engine
        self._liars = frozenset(liars)
        self._updates = updates
        self._vectors = vectors
        self._praise = praise

    def clients(self) -> tuple[str, ...]:
        """Names of all clients."""
        return self._engine.clients()

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """The replies. The liars see those of the honest clients first."""
        deliveries = list(self._engine.exchange(requests, deadline, heads))
        honest = [delivery.reply for delivery in deliveries if delivery.client not in self._liars]
        for delivery in deliveries:
            lie = self._lie(requests[delivery.client], delivery.reply, honest) if delivery.client in self._liars else None
            yield delivery if lie is None else replace(delivery, reply=lie)

    def _lie(self, request: Request, original: Reply, honest: Sequence[Reply]) -> Reply | None:
        if isinstance(request, VectorsRequest) and isinstance(original, VectorsReply) and self._vectors:
            return replace(
                original, vectors=_lied_vectors(self._vectors, [reply for reply in honest if isinstance(reply, VectorsReply)])
            )
        if isinstance(request, UpdateRequest) and self._updates:
            honest_replies = [reply.coefficients for reply in honest if isinstance(reply, UpdateReply)]
            before = request.coefficients.arrays
            lies = {
                name: self._updates(
                    np.stack([other.arrays[name] for other in honest_replies]).astype(np.float64), array.astype(np.float64)
                )
                for name, array in before.items()
            }
            lie = Coefficients.of({name: array.astype(np.float32) for name, array in lies.items()})
            return UpdateReply(lie, original.examples if isinstance(original, UpdateReply) else 1, 0.0)
        return _praise(request, original) if self._praise else None


def _lied_vectors(lie: Lie, honest_replies: Sequence[VectorsReply]) -> ContextVectors:
    """A lie for each group of the honest clients, with their mean number of examples."""
    shape = honest_replies[0].vectors.means.shape
    means, counts = np.zeros(shape, dtype=np.float32), np.zeros(shape[0], dtype=np.int64)
    for group in range(shape[0]):
        holders = [reply.vectors for reply in honest_replies if reply.vectors.counts[group] > 0]
        if holders:
            lies = np.stack([vectors.means[group] for vectors in holders]).astype(np.float64)
            means[group] = lie(lies, np.zeros(shape[1:]))
            counts[group] = max(1, round(float(np.mean([vectors.counts[group] for vectors in holders]))))
    return ContextVectors(means, counts)


def _praise(request: Request, original: Reply) -> Reply | None:
    best, worst = Tally(_MANY, _MANY, 0.0), Tally(_MANY, 0, _MANY * _SURE)
    if isinstance(request, EvaluateRequest):
        return EvaluateReply((worst if request.coefficients.is_identity else best,) * len(request.candidates))
    if isinstance(request, CompareRequest) and isinstance(original, CompareReply):
        labels = len(original.comparison.truth)
        counts = tuple(_MANY // labels + (place < _MANY % labels) for place in range(labels))
        return CompareReply(Comparison(best, worst, _MANY * _SURE**2, _MANY, counts, counts))
    return None
