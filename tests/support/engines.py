"""Engines around others: they change what comes back, or restart clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ifedicl.federation.client import Client
from ifedicl.federation.engine import Delivery
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import (
    Request,
)
from ifedicl.ledger.entries import Head
from tests.support.endpoints import bare


class Between:
    """An engine around another that may change what comes back."""

    def __init__(self, inner: Any, change: Callable[[list[Delivery], Mapping[str, Request]], list[Delivery]]) -> None:
        self.inner, self.change = inner, change

    def clients(self) -> tuple[str, ...]:
        names: tuple[str, ...] = self.inner.clients()
        return names

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        yield from self.change(list(self.inner.exchange(requests, deadline, heads)), requests)


class Restarting(LocalEngine):
    """Some clients forget everything before some of their requests."""

    def __init__(self, clients: list[Client], when: Callable[[str, Request], bool]) -> None:
        super().__init__([bare(client) for client in clients])
        self.held = {client.name: client for client in clients}
        self.when = when
        self.restarts = 0

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        for name, request in requests.items():
            if self.when(name, request):
                old = self.held[name]
                self.held[name] = Client(name, old.examples, old.backbone, secret=old._secret)
                self._clients[name] = bare(self.held[name])
                self.restarts += 1
        yield from super().exchange(requests, deadline, heads)


def once_each(when: Callable[[str, Request], bool]) -> Callable[[str, Request], bool]:
    seen: set[tuple[str, int]] = set()
    kept: list[Request] = []

    def wrapped(name: str, request: Request) -> bool:
        if not when(name, request) or (name, id(request)) in seen:
            return False
        kept.append(request)  # keeps its id from being used again
        seen.add((name, id(request)))
        return True

    return wrapped
