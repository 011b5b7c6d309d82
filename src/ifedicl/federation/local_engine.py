"""All clients in this process, taking turns in a fixed order over one shared model.

They cannot run side by side: injections belong to the model's modules, so two clients with different coefficients would
disturb each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from ifedicl.federation.engine import Delivery, Door
from ifedicl.federation.messages import Failure, FailureCode, Request, decode_request, encode, received


class LocalEngine:
    """Runs simulated clients. Messages are encoded and decoded as on a network, so their bytes are real."""

    def __init__(self, clients: Sequence[Door]) -> None:
        """Hold the clients, in order.

        Raises:
            ValueError: two clients have the same name.
        """
        self._clients = {client.name: client for client in clients}
        if len(self._clients) != len(clients):
            raise ValueError("two clients have the same name")

    def clients(self) -> tuple[str, ...]:
        """Names in the order given."""
        return tuple(self._clients)

    def exchange(self, requests: Mapping[str, Request], deadline: float) -> Iterator[Delivery]:
        """One client after another; each has the whole deadline, as it would on a machine of its own."""
        sent: Request | None = None
        for name, request in requests.items():
            start = time.perf_counter()
            if request is not sent:  # one request object sent to many is encoded once, and held once
                sent, down = request, encode(request)
                arrived = decode_request(down)
            up = encode(self._clients[name].handle(arrived))
            seconds = time.perf_counter() - start
            reply, sha256 = (Failure(FailureCode.LATE), "") if seconds > deadline else received(up)
            yield Delivery(name, reply, len(down), len(up), seconds, sha256=sha256)
