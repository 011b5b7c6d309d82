"""The exchanges of one secure sum: their costs and failures, by client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.ledger.entries import Head

R = TypeVar("R", bound=Reply)

_NO_HEADS: Mapping[str, Head] = MappingProxyType({})
_COSTS = ("bytes_down", "bytes_up", "seconds", "carrier_bytes")


class Link:
    """Carries the messages of one sum over an engine."""

    def __init__(self, engine: Engine, deadline: float) -> None:
        """Take the engine, and the deadline of each exchange in seconds."""
        self._engine = engine
        self._deadline = deadline
        self._costs: dict[str, Delivery] = {}
        self.failures: dict[str, FailureCode] = {}

    @property
    def costs(self) -> tuple[Delivery, ...]:
        """One delivery a client: the sums of its costs so far, and its last reply."""
        return tuple(self._costs[name] for name in self._engine.clients() if name in self._costs)

    def ask(
        self,
        requests: Mapping[str, Request],
        expected: type[R],
        usable: Callable[[R], bool],
        heads: Mapping[str, Head] = _NO_HEADS,
    ) -> dict[str, R]:
        """The usable replies, in the order of the requests. ``failures`` keeps the codes of the other clients."""
        replies: dict[str, R] = {}
        for delivery in self._engine.exchange(requests, self._deadline, heads):
            reply = delivery.reply
            if isinstance(reply, expected) and usable(reply):
                replies[delivery.client] = reply
            else:
                failure = reply if isinstance(reply, Failure) else Failure(FailureCode.BAD_REPLY)
                self.failures[delivery.client] = failure.code
                delivery = replace(delivery, reply=failure)
            self._count(delivery)
        return {name: replies[name] for name in requests if name in replies}

    def _count(self, delivery: Delivery) -> None:
        before = self._costs.get(delivery.client)
        if before is not None:
            sums = {name: getattr(before, name) + getattr(delivery, name) for name in _COSTS}
            delivery = replace(delivery, **sums)
        self._costs[delivery.client] = delivery
