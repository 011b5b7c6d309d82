"""Life of one server: load adapters, listen, answer, stop in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ifedicl.backbone.load import Backbone
from ifedicl.errors import IfediclError, ServeError
from ifedicl.serve.answering import ServerState
from ifedicl.serve.api_keys import Keys
from ifedicl.serve.app import application
from ifedicl.serve.catalog import Catalog, Source
from ifedicl.serve.faults import type_and_place
from ifedicl.serve.hosts import Hosts
from ifedicl.serve.limits import Limits
from ifedicl.serve.meters import Meters
from ifedicl.serve.runviews import Runs
from ifedicl.serve.schemas import ModelFacts
from ifedicl.serve.worker import Worker

if TYPE_CHECKING:
    from ifedicl.serve.traces import Traces

_log = logging.getLogger(__name__)
_MOST_HEAD = 32 << 10
_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True)
class Listener:
    """A bound socket.

    Attributes:
        host: address or name that it was bound to.
        socket: not listening yet.
    """

    host: str
    socket: socket.socket


def serve(
    backbone: Backbone,
    sources: Sequence[Source],
    *,
    name: str,
    listener: Listener,
    limits: Limits,
    keys: Keys | None = None,
    runs: Path | None = None,
    allowed_hosts: Sequence[str] = (),
    traces: Traces | None = None,
    on_start: Callable[[str, Catalog], None],
) -> None:
    """Answer until the process gets a signal to stop.

    Args:
        backbone: the model; the server's thread runs it, and others of this process wait for it.
        sources: of adapters.
        name: of the model, for people.
        listener: from :func:`bound`.
        limits: bounds of requests.
        keys: API keys; None: no key is needed.
        runs: a folder of runs that the page shows.
        allowed_hosts: names under which others reach the server. Without any, a server without keys answers its own names, and
            one with keys any name.
        traces: of OpenTelemetry; None: none.
        on_start: called with the URL and the catalog once requests are answered.

    Raises:
        IfediclError: an adapter cannot be served.
    """
    meters = Meters(() if traces is None else (traces,))
    worker = Worker(backbone, most_waiting=limits.waiting, on_pass=meters.passed)
    stopping = threading.Event()
    try:
        catalog = Catalog(
            sources,
            backbone.fingerprint,
            lambda adapter: worker.call(lambda: adapter.on_model(backbone).placed()).result(),
        )
        catalog.refresh(strict=True)
        meters.watch(lambda: worker.waiting, lambda: len(catalog))
        facts = ModelFacts(name=name, fingerprint=backbone.fingerprint, dtype=backbone.dtype)
        state = ServerState(facts, catalog, worker, meters, Runs(runs), limits)
        refreshed = (stopping, limits.refresh_seconds, catalog, keys)
        threading.Thread(target=_keep_refreshing, args=refreshed, daemon=True).start()
        hosts = Hosts(listener.host, allowed_hosts) if keys is None or allowed_hosts else None
        server = _Server(application(state, keys, hosts, traces), limits, lambda url: on_start(url, catalog))
        with _signals_answered():
            server.run([listener.socket])
    finally:
        stopping.set()
        worker.stop()


def _keep_refreshing(stopping: threading.Event, seconds: float, catalog: Catalog, keys: Keys | None) -> None:
    refreshed = [("adapters", catalog.refresh)] if keys is None else [("keys", keys.refresh), ("adapters", catalog.refresh)]
    while not stopping.wait(seconds):
        for name, refresh in refreshed:
            # After any error the thread goes on: without it a key that is withdrawn later would stay valid.
            try:
                refresh()
            except IfediclError as error:
                _log.warning("%s not refreshed: %s", name, error)
            except Exception as error:
                _log.error("%s not refreshed: %s", name, type_and_place(error))


def bound(host: str, port: int) -> Listener:
    """A listener at an address or name of this machine; port 0: any free port. Called before the model is loaded.

    Raises:
        ServeError: the address is taken, or not one of this machine.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        reason = f"cannot listen at {host}, port {port}: {error.strerror or error}"
        raise ServeError(f"--host, --port: {reason}. Choose another port (0: any free one) or host") from error
    return Listener(host, made)


class _Server(uvicorn.Server):
    """Calls ``on_start`` with the URL once it listens."""

    def __init__(self, app: Any, limits: Limits, on_start: Callable[[str], None]) -> None:
        config = uvicorn.Config(
            app,
            http=_protocol(limits.arrival_seconds, limits.per_address),
            ws="none",
            log_config=None,
            access_log=False,  # nothing of a request is logged
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=limits.stop_seconds,
            h11_max_incomplete_event_size=_MOST_HEAD,
        )
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._on_start(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")


@contextmanager
def _signals_answered() -> Iterator[None]:
    """Ignore the signal that uvicorn raises once more after it has stopped in order."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _origin(transport: asyncio.BaseTransport) -> str:
    """The client's address; of IPv6 its network, because one host has as many addresses as it likes."""
    address = ip_address((transport.get_extra_info("peername") or ("127.0.0.1",))[0].partition("%")[0])
    return str(address if address.version == 4 else ip_network((address, 64), strict=False))


def _protocol(seconds: float, per_address: int) -> type[asyncio.Protocol]:
    """HTTP/1.1 with a deadline for a request's head and a limit of connections for each address.

    Uvicorn has neither: a client that sends single bytes would stay forever, and one that opens all connections would shut the
    others out.
    """
    opened: Counter[str] = Counter()

    class Deadline(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _counted = ""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._counted = _origin(transport)
            opened[self._counted] += 1
            super().connection_made(transport)
            if opened[self._counted] > per_address:
                transport.write(_TOO_MANY)
                transport.close()
                return
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            opened[self._counted] -= 1
            if not opened[self._counted]:
                del opened[self._counted]
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self._unwatch()
            elif self._head is None:
                self._head = self.loop.call_later(seconds, self._late)

        def _unwatch(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _late(self) -> None:
            self._head = None
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.transport.write(_LATE)
                self.transport.close()

    return Deadline
