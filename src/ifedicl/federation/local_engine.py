"""All clients in this process, taking turns in a fixed order over one shared model.

They cannot run side by side: injections belong to the model's modules, so two clients with different coefficients would
disturb each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from ifedicl.federation.engine import Delivery
from ifedicl.federation.handler import Endpoint
from ifedicl.federation.messages import Envelope, Failure, FailureCode, Frame, Request
from ifedicl.ledger.entries import Head


class LocalEngine:
    """Runs simulated clients. Messages are packed and unpacked as on a network, so byte counts are real."""

    def __init__(self, clients: Sequence[Endpoint]) -> None:
        """Take the clients, in order.

        Raises:
            ValueError: two clients have the same name.
        """
        self._clients = {client.name: client for client in clients}
        if len(self._clients) != len(clients):
            raise ValueError("two clients have the same name")

    def clients(self) -> tuple[str, ...]:
        """Names in the order given."""
        return tuple(self._clients)

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """Ask one client after another; each has the whole deadline, as on its own machine."""
        sent: Request | None = None
        for name, request in requests.items():
            start = time.perf_counter()
            if request is not sent:  # a request object for many clients is packed and decoded once
                sent, frame = request, Frame.of(request)
            down = Envelope(heads.get(name), frame)
            up = self._clients[name].handle(down).to_bytes()
            seconds = time.perf_counter() - start
            if seconds > deadline:
                yield Delivery(name, Failure(FailureCode.LATE), down.size, len(up), seconds)
            else:
                arrived = Envelope.from_bytes(up)
                yield Delivery(name, arrived.frame.reply, down.size, len(up), seconds, receipt=arrived.receipt)
