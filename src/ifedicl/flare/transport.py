"""Messages over a transport that delivers bytes: requests are grouped, deadlines kept, missing replies become failures."""

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
_POLL_SECONDS = 0.25  # between two checks which sites are connected


@dataclass(frozen=True)
class SiteReply:
    """One site's reply as the transport delivers it.

    Attributes:
        client: the site's name, from its certificate.
        wire: the bytes of the reply; None if the transport reports that there is no reply.
        extra_down: bytes that the transport added to the request.
        extra_up: bytes that it added to the reply.
    """

    client: str
    wire: bytes | None
    extra_down: int
    extra_up: int


class Transport(Protocol):
    """Carries bytes to sites and back."""

    def send(self, wire: bytes, names: Sequence[str], inbox: Callable[[SiteReply], None]) -> Callable[[], None]:
        """Send to each site; ``inbox`` receives each reply, from any thread. The result cancels unanswered requests."""
        ...

    def is_lost(self, name: str) -> bool:
        """Whether the site is not connected."""
        ...

    def is_stopped(self) -> bool:
        """Whether the job was aborted."""
        ...


class TransportEngine:
    """An engine over a :class:`Transport`."""

    def __init__(self, transport: Transport, clients: Sequence[str]) -> None:
        """Reach ``clients``, in the order in which their replies are aggregated."""
        self._transport = transport
        self._clients = tuple(clients)

    def clients(self) -> tuple[str, ...]:
        """Names, in order."""
        return self._clients

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """Send to all sites at once, and yield replies as they arrive.

        A site without a reply at the deadline is late, or lost if it is not connected. A site that reconnects can answer.

        Raises:
            FederationError: the job was aborted.
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
                    client, wire, extra = site_reply.client, site_reply.wire or b"", site_reply.extra_down + site_reply.extra_up
                    reply, receipt = _read(client, wire)
                    yield Delivery(client, reply, down, len(wire), seconds, carrier_bytes=extra, receipt=receipt)
        finally:
            for cancel in cancels:
                cancel()

    def _next(self, arrived: queue.SimpleQueue[SiteReply], until: float, waiting: Mapping[str, int]) -> SiteReply | None:
        """The next reply; None at the deadline, or once no site that still has to reply is connected."""
        while True:
            try:
                return arrived.get(timeout=max(0.0, min(_POLL_SECONDS, until - time.monotonic())))
            except queue.Empty:
                if self._transport.is_stopped():
                    raise FederationError("the job was stopped; continue with: ifedicl flare resume") from None
                if time.monotonic() >= until or all(map(self._transport.is_lost, waiting)):
                    return None


def _grouped(requests: Mapping[str, Request], heads: Mapping[str, Head]) -> Iterator[tuple[bytes, list[str]]]:
    """The bytes of each distinct envelope, and the sites that get it. Each request is packed once."""
    frames = {key: Frame.of(request) for key, request in {id(request): request for request in requests.values()}.items()}
    groups: dict[tuple[int, Head | None], list[str]] = {}
    for name, request in requests.items():
        groups.setdefault((id(request), heads.get(name)), []).append(name)
    for (request_id, head), names in groups.items():
        yield Envelope(head, frames[request_id]).to_bytes(), names


def _read(client: str, wire: bytes) -> tuple[Reply, Receipt | None]:
    """The reply and its receipt; a failure if the bytes are not a reply."""
    try:
        envelope = Envelope.from_bytes(wire)
        return envelope.frame.reply, envelope.receipt
    except MessageError as error:
        _log.warning("client %s: its reply cannot be read: %s", client, error)
        return Failure(FailureCode.BAD_REPLY), None
