"""Engines around others: they change what comes back, or restart clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from ifedicl.federation.client import Client
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import Reply, Request
from ifedicl.ledger.entries import Head
from tests.support.endpoints import bare


class RecordingEngine:
    """An engine around another. It keeps what crosses in ``crossed``, and ``change`` may replace a reply.

    Args:
        inner: the engine that reaches the clients.
        change: gives the reply to pass on, for a client's name, its request and its reply.
        backwards: whether replies come in the opposite order.
    """

    def __init__(
        self,
        inner: Engine,
        change: Callable[[str, Request, Reply], Reply] = lambda name, request, reply: reply,
        *,
        backwards: bool = False,
    ) -> None:
        self.inner, self.change, self.backwards = inner, change, backwards
        self.crossed: list[tuple[str, Request, Reply]] = []

    def clients(self) -> tuple[str, ...]:
        """The names of the inner engine's clients."""
        return self.inner.clients()

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """The deliveries of the inner engine, with the replies that ``change`` gives."""
        deliveries = self.inner.exchange(requests, deadline, heads)
        for delivery in reversed(list(deliveries)) if self.backwards else deliveries:
            reply = self.change(delivery.client, requests[delivery.client], delivery.reply)
            self.crossed.append((delivery.client, requests[delivery.client], reply))
            yield replace(delivery, reply=reply)

    def asked(self, kind: type[Request]) -> list[str]:
        """The clients that replied to this kind of request, in order."""
        return [name for name, request, _ in self.crossed if isinstance(request, kind)]


class Restarting(LocalEngine):
    """A local engine that starts a client again, without its memory, before each request of which ``when`` is true."""

    def __init__(self, clients: list[Client], when: Callable[[str, Request], bool]) -> None:
        super().__init__([bare(client) for client in clients])
        self.current = {client.name: client for client in clients}
        self.when = when
        self.restarts = 0

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """The deliveries of the local engine, after the restarts."""
        for name, request in requests.items():
            if self.when(name, request):
                old = self.current[name]
                self.current[name] = Client(name, old.examples, old.backbone, secret=old._secret)
                self._clients[name] = bare(self.current[name])
                self.restarts += 1
        yield from super().exchange(requests, deadline, heads)


def once_each(when: Callable[[str, Request], bool]) -> Callable[[str, Request], bool]:
    """``when``, true at most once for each request of a client."""
    seen: set[tuple[str, int]] = set()
    kept: list[Request] = []

    def wrapped(name: str, request: Request) -> bool:
        if not when(name, request) or (name, id(request)) in seen:
            return False
        kept.append(request)  # keeps its id from being used again
        seen.add((name, id(request)))
        return True

    return wrapped
