"""All clients in this process, taking turns in a fixed order over one shared model.

They cannot run side by side: injections belong to the model's modules, so two clients with different coefficients would
disturb each other. In lockstep several clients' rows share each pass of an update.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ifedicl.backbone.lockstep import Lockstep
from ifedicl.federation.engine import Delivery
from ifedicl.federation.handler import Endpoint
from ifedicl.federation.messages import Envelope, Failure, FailureCode, Frame, Request, UpdateRequest
from ifedicl.ledger.entries import Head


class LocalEngine:
    """Runs simulated clients. Messages are packed and unpacked as on a network, so byte counts are real."""

    def __init__(self, clients: Sequence[Endpoint], *, lockstep: Lockstep | None = None, most: int = 1) -> None:
        """Take the clients, in order.

        Args:
            clients: endpoints.
            lockstep: that of all clients; None: they take turns.
            most: clients whose rows share a pass in lockstep.

        Raises:
            ValueError: two clients have the same name.
        """
        self._lockstep = lockstep
        self._most = most
        self._clients = {client.name: client for client in clients}
        if len(self._clients) != len(clients):
            raise ValueError("two clients have the same name")

    def clients(self) -> tuple[str, ...]:
        """Names in the order given."""
        return tuple(self._clients)

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """Ask one client after another, or a group at once; each has the whole deadline, as on its own machine."""
        asked = list(self._packed(requests, heads))
        if self._lockstep is None or not all(isinstance(request, UpdateRequest) for request in requests.values()):
            for name, down in asked:
                start = time.perf_counter()
                up = self._clients[name].handle(down)
                yield _delivery(name, down, up, time.perf_counter() - start, deadline)
            return
        for begin in range(0, len(asked), self._most):
            yield from self._at_once(asked[begin : begin + self._most], self._lockstep, deadline)

    @staticmethod
    def _packed(requests: Mapping[str, Request], heads: Mapping[str, Head]) -> Iterator[tuple[str, Envelope]]:
        sent: Request | None = None
        for name, request in requests.items():
            if request is not sent:  # a request object for many clients is packed and decoded once
                sent, frame = request, Frame.of(request)
            yield name, Envelope(heads.get(name), frame)

    def _at_once(self, asked: Sequence[tuple[str, Envelope]], lockstep: Lockstep, deadline: float) -> Iterator[Delivery]:
        """Each client of a group in its own thread. A client's seconds are its share of the group's."""

        def answer(place: int) -> Envelope:
            name, down = asked[place]
            with lockstep.member(place):
                return self._clients[name].handle(down)

        start = time.perf_counter()
        lockstep.begin(len(asked))
        with ThreadPoolExecutor(len(asked)) as pool:
            replies = list(pool.map(answer, range(len(asked))))
        seconds = (time.perf_counter() - start) / len(asked)
        for (name, down), up in zip(asked, replies, strict=True):
            yield _delivery(name, down, up, seconds, deadline)


def _delivery(name: str, down: Envelope, up: Envelope, seconds: float, deadline: float) -> Delivery:
    data = up.to_bytes()
    if seconds > deadline:
        return Delivery(name, Failure(FailureCode.LATE), down.size, len(data), seconds)
    arrived = Envelope.from_bytes(data)
    return Delivery(name, arrived.frame.reply, down.size, len(data), seconds, receipt=arrived.receipt)
