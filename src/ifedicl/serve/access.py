"""Access control of every request: Host header, API key, size and time to arrive. Adds the security headers to every answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ifedicl.serve.api_keys import Keys
from ifedicl.serve.faults import fault, type_and_place
from ifedicl.serve.hosts import HEALTH, Hosts
from ifedicl.serve.limits import Limits

_log = logging.getLogger(__name__)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_DRAINED = 32 << 20
"""Bytes of a refused body that are read and dropped, so that a client that is still sending them can read the answer."""
_KEYED = ("/v1/", "/metrics")


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Connection": "close"}
        self.response = fault(status, code, message, headers)


class _Held:
    """Bytes of the bodies of all requests at this time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = 0

    def take(self, size: int) -> None:
        """Count the bytes of one more part; the caller gives them back.

        Raises:
            _RefusedError: all bodies together would be too large.
        """
        self._now += size
        if self._now > self._most:
            message = f"all requests together hold more than {self._most} bytes; ask again in a moment, or send fewer at a time"
            raise _RefusedError(503, "busy", message)

    def give(self, size: int) -> None:
        """Count them no longer."""
        self._now -= size


@dataclass(frozen=True, eq=False)
class AccessControl:
    """Middleware: refuses requests before anything is parsed, and passes on only whole bodies.

    Attributes:
        keys: API keys; None: no key is needed.
        hosts: allowed Host headers, of all paths but those of health; None: any.
        on_answer: called with path template, status and seconds of each answer.
    """

    app: ASGIApp
    limits: Limits
    keys: Keys | None
    hosts: Hosts | None
    on_answer: Callable[[str, int, float], None]
    _held: _Held = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_held", _Held(self.limits.held_bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, started = time.perf_counter(), 500, False

        async def answered(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                present = {name.lower() for name, _ in message["headers"]}
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(item for item in added if item[0] not in present)]
            await send(message)

        body = bytearray()
        try:
            self._check_host(scope)
            self._check_key(scope)
            await self._receive_body(scope, receive, body)
        except _RefusedError as refusal:
            await self._drain(receive)
            await refusal.response(scope, receive, answered)
        else:
            try:
                await self.app(scope, _replayed(bytes(body), receive), answered)
            except Exception as error:
                _log.error("a request failed: %s", type_and_place(error))
                if not started:
                    failure = _RefusedError(500, "server", "the server failed; its log says where")
                    await failure.response(scope, receive, answered)
        finally:
            self._held.give(len(body))
        self.on_answer(getattr(scope.get("route"), "path", "other"), status, time.perf_counter() - start)

    def _check_host(self, scope: Scope) -> None:
        given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self.hosts is not None and scope["path"] not in HEALTH and not self.hosts.hold(given):
            message = f"Host: received {given[:80]!r}; allowed: {self.hosts.described}"
            raise _RefusedError(400, "host", f"{message}. Use such a name, or start the server with --allowed-host NAME")

    def _check_key(self, scope: Scope) -> None:
        if self.keys is None or not scope["path"].startswith(_KEYED):
            return
        if not self.keys.are_known:
            message = "the server cannot read its key file; its log says why. Ask again once the file is repaired"
            raise _RefusedError(503, "keys", message)
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        scheme, _, key = given.partition(" ")
        if scheme.lower() != "bearer" or self.keys.holder(key.strip()) is None:
            reason = "the key is not known" if given else "no key was given"
            raise _RefusedError(401, "key", f"{reason}; send the header 'Authorization: Bearer KEY'")

    async def _receive_body(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Fill ``body``, whose bytes are counted as held."""
        most, seconds = self.limits.body_bytes, self.limits.arrival_seconds
        message = f"the request is larger than {most} bytes; send fewer or shorter texts at a time"
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > most:
            raise _RefusedError(413, "size", message)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    part = await receive()
                    body += part.get("body", b"")
                    self._held.take(len(part.get("body", b"")))
                    if len(body) > most:
                        raise _RefusedError(413, "size", message)
                    if not part.get("more_body", False):
                        return
        except TimeoutError:
            message = f"the request did not arrive within {seconds:g} seconds; send it without pauses"
            raise _RefusedError(408, "slow", message) from None

    async def _drain(self, receive: Receive) -> None:
        unread = _DRAINED
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.arrival_seconds):
                while unread > 0:
                    message = await receive()
                    unread -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns the body once, then what the client sends next."""
    whole: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        return next(whole, None) or await receive()

    return replay
