"""Our messages over a transport that delivers bytes: grouping, deadlines, and what becomes of replies that do not come."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ifedicl.errors import FederationError, MessageError
from ifedicl.federation.engine import Delivery
from ifedicl.federation.messages import Envelope, Failure, FailureCode, Frame, Reply, Request
from ifedicl.ledger.entries import Head
from ifedicl.ledger.receipts import Receipt

_log = logging.getLogger(__name__)
_LOOK = 0.25  # seconds between looks at who is lost


@dataclass(frozen=True)
class SiteReply:
    """What the transport has brought from one site.

    Attributes:
        client: the site's name, as its certificate says it.
        wire: the bytes of its reply; None where the carrier itself says that there is none.
        extra_down: bytes that the carrier added to the request.
        extra_up: bytes that it added to the reply.
    """

    client: str
    wire: bytes | None
    extra_down: int
    extra_up: int


class Transport(Protocol):
    """What carries bytes to sites and back."""

    def send(self, wire: bytes, names: Sequence[str], inbox: Callable[[SiteReply], None]) -> Callable[[], None]:
        """Send to each site; ``inbox`` is called once for each that answers, from any thread.

        Returns:
            Takes back what was not fetched or answered yet.
        """
        ...

    def is_lost(self, name: str) -> bool:
        """Whether the site is not connected."""
        ...

    def is_stopped(self) -> bool:
        """Whether the job was told to stop."""
        ...


class TransportEngine:
    """An engine over a :class:`Transport`."""

    def __init__(self, transport: Transport, clients: Sequence[str]) -> None:
        """Reach ``clients``, in the order in which their replies are aggregated."""
        self._transport = transport
        self._clients = tuple(clients)

    def clients(self) -> tuple[str, ...]:
        """Names in the order given."""
        return self._clients

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """Send to all at once and yield what comes as it comes.

        Who has not answered by the deadline is late, or lost where it is not connected any more. A site that comes back in
        time answers as if nothing had happened.

        Raises:
            FederationError: the job was told to stop.
        """
        start = time.monotonic()
        arrived: queue.SimpleQueue[SiteReply] = queue.SimpleQueue()
        sizes: dict[str, int] = {}
        cancels = []
        for wire, names in _grouped(requests, heads):
            sizes |= dict.fromkeys(names, len(wire))
            cancels.append(self._transport.send(wire, names, arrived.put))
        try:
            while sizes:
                site_reply = self._next(arrived, start + deadline, sizes)
                seconds = time.monotonic() - start
                if site_reply is None:
                    for name in sizes:
                        code = FailureCode.LOST if self._transport.is_lost(name) else FailureCode.LATE
                        yield Delivery(name, Failure(code), sizes[name], 0, seconds)
                    return
                down = sizes.pop(site_reply.client, None)
                if down is not None:
                    extra = site_reply.extra_down + site_reply.extra_up
                    wire = site_reply.wire or b""
                    reply, receipt = _read(site_reply.client, wire)
                    yield Delivery(site_reply.client, reply, down, len(wire), seconds, carrier_bytes=extra, receipt=receipt)
        finally:
            for cancel in cancels:
                cancel()

    def _next(self, arrived: queue.SimpleQueue[SiteReply], until: float, waiting: Mapping[str, int]) -> SiteReply | None:
        """The next reply; None at the deadline, and as soon as nobody is connected who could still answer."""
        while True:
            try:
                return arrived.get(timeout=max(0.0, min(_LOOK, until - time.monotonic())))
            except queue.Empty:
                if self._transport.is_stopped():
                    raise FederationError("the job was stopped; what was done is kept: ifedicl flare resume") from None
                if time.monotonic() >= until or all(map(self._transport.is_lost, waiting)):
                    return None


def _grouped(requests: Mapping[str, Request], heads: Mapping[str, Head]) -> Iterator[tuple[bytes, list[str]]]:
    """Each different envelope once, as bytes, with the names of those who get it. Each request is packed once."""
    frames = {id(request): Frame.of(request) for request in {id(own): own for own in requests.values()}.values()}
    groups: dict[tuple[int, Head | None], list[str]] = {}
    for name, request in requests.items():
        groups.setdefault((id(request), heads.get(name)), []).append(name)
    for (request_id, head), names in groups.items():
        yield Envelope(head, frames[request_id]).to_bytes(), names


def _read(client: str, wire: bytes) -> tuple[Reply, Receipt | None]:
    """A site may send anything, or nothing."""
    try:
        envelope = Envelope.from_bytes(wire)
        return envelope.frame.reply, envelope.receipt
    except MessageError as error:
        _log.warning("the reply of %s cannot be read: %s", client, error)
        return Failure(FailureCode.BAD_REPLY), None
