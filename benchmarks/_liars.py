"""Clients that lie, to measure which lies an aggregation withstands. They see the honest replies first, and collude."""

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
"""What all liars say, of ``(K, ...)`` honest numbers and the ``(...)`` that they are changes of."""

_MANY = 2**20
_SURE = 5.0  # nats by which the raw model is said to be worse


def _flipped(honest: Numbers, before: Numbers) -> Numbers:
    lie: Numbers = before - (honest.mean(axis=0) - before)
    return lie


def _thousandfold(honest: Numbers, before: Numbers) -> Numbers:
    lie: Numbers = before - 1000.0 * (honest.mean(axis=0) - before)
    return lie


def _edge(honest: Numbers, before: Numbers) -> Numbers:
    """For every number, the honest value furthest in the wrong direction: a trimmed mean cannot recognise it."""
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
    """An engine some of whose clients lie."""

    def __init__(
        self,
        engine: Engine,
        liars: Sequence[str],
        *,
        updates: Lie | None = None,
        vectors: Lie | None = None,
        praise: bool = True,
    ) -> None:
        """Stand between coordinator and clients.

        Args:
            engine: of clients that are all honest.
            liars: names of those whose replies are replaced.
            updates: what they say in place of coefficients; None: the truth.
            vectors: in place of context vectors; likewise.
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
        """Honest clients reply first: the liars see their replies."""
        deliveries = list(self._engine.exchange(requests, deadline, heads))
        honest = [delivery.reply for delivery in deliveries if delivery.client not in self._liars]
        for delivery in deliveries:
            lie = self._lie(requests[delivery.client], delivery.reply, honest) if delivery.client in self._liars else None
            yield delivery if lie is None else replace(delivery, reply=lie)

    def _lie(self, request: Request, own: Reply, honest: Sequence[Reply]) -> Reply | None:
        if isinstance(request, VectorsRequest) and isinstance(own, VectorsReply) and self._vectors:
            return replace(
                own, vectors=_lied_vectors(self._vectors, [reply for reply in honest if isinstance(reply, VectorsReply)])
            )
        if isinstance(request, UpdateRequest) and self._updates:
            heard = [reply.coefficients for reply in honest if isinstance(reply, UpdateReply)]
            before = request.coefficients.arrays
            said = {
                name: self._updates(
                    np.stack([other.arrays[name] for other in heard]).astype(np.float64), array.astype(np.float64)
                )
                for name, array in before.items()
            }
            lie = Coefficients.of({name: array.astype(np.float32) for name, array in said.items()})
            return UpdateReply(lie, own.examples if isinstance(own, UpdateReply) else 1, 0.0)
        return _praise(request, own) if self._praise else None


def _lied_vectors(lie: Lie, heard: Sequence[VectorsReply]) -> ContextVectors:
    """Lies for every group of the honest clients, with their mean number of examples."""
    shape = heard[0].vectors.means.shape
    means, counts = np.zeros(shape, dtype=np.float32), np.zeros(shape[0], dtype=np.int64)
    for group in range(shape[0]):
        holders = [reply.vectors for reply in heard if reply.vectors.counts[group] > 0]
        if holders:
            said = np.stack([own.means[group] for own in holders]).astype(np.float64)
            means[group] = lie(said, np.zeros(shape[1:]))
            counts[group] = max(1, round(float(np.mean([own.counts[group] for own in holders]))))
    return ContextVectors(means, counts)


def _praise(request: Request, own: Reply) -> Reply | None:
    best, worst = Tally(_MANY, _MANY, 0.0), Tally(_MANY, 0, _MANY * _SURE)
    if isinstance(request, EvaluateRequest):
        return EvaluateReply((worst if request.coefficients.is_identity else best,) * len(request.candidates))
    if isinstance(request, CompareRequest) and isinstance(own, CompareReply):
        labels = len(own.comparison.truth)
        counts = tuple(_MANY // labels + (place < _MANY % labels) for place in range(labels))
        return CompareReply(Comparison(best, worst, _MANY * _SURE**2, _MANY, counts, counts))
    return None
