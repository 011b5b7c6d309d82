"""Access control of every request: Host header, API key, size and time to arrive. Adds the security headers to every answer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ifedicl.serve.api_keys import Keys
from ifedicl.serve.error_log import happened
from ifedicl.serve.hosts import Hosts
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
        self.status, self.code, self.message = status, code, message
        super().__init__(message)


class AccessControl:
    """Middleware: refuses requests before anything is parsed, and passes on only whole bodies."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        keys: Keys | None,
        hosts: Hosts | None,
        on_answer: Callable[[str, int, float], None],
    ) -> None:
        """Wrap an application.

        Args:
            app: the application that answers allowed requests.
            limits: bounds of size and time.
            keys: API keys; None: no key is needed.
            hosts: allowed Host headers; None: any.
            on_answer: called with path template, status and seconds of each answer.
        """
        self._app = app
        self._limits = limits
        self._keys = keys
        self._hosts = hosts
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, started = time.perf_counter(), 500, False

        async def answered(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                held = {name.lower() for name, _ in message["headers"]}
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(item for item in own if item[0] not in held)]
            await send(message)

        try:
            self._check_host(scope)
            self._check_key(scope)
            body = await self._body(scope, receive)
        except _RefusedError as refusal:
            await self._drain(receive)
            await _refuse(answered, refusal)
        else:
            try:
                await self._app(scope, _replayed(body, receive), answered)
            except Exception as error:
                _log.error("a request failed: %s", happened(error))
                if not started:
                    await _refuse(answered, _RefusedError(500, "server", "the server failed; its log says where"))
        route = scope.get("route")
        self._on_answer(getattr(route, "path", "other"), status, time.perf_counter() - start)

    def _check_host(self, scope: Scope) -> None:
        given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self._hosts is not None and not self._hosts.hold(given):
            said = f"Host: received {given[:80]!r}; allowed without keys: {self._hosts.described}"
            raise _RefusedError(400, "host", f"{said}. Use that name, or start the server with --host NAME or --keys")

    def _check_key(self, scope: Scope) -> None:
        path = scope["path"]
        if self._keys is None or not path.startswith(_KEYED):
            return
        if not self._keys.are_known:
            raise _RefusedError(
                503, "keys", "the server cannot read its key file; its log says why. Ask again once the file is repaired"
            )
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        scheme, _, key = given.partition(" ")
        if scheme.lower() != "bearer" or self._keys.holder(key.strip()) is None:
            said = "the key is not known" if given else "no key was given"
            raise _RefusedError(401, "key", f"{said}; send the header 'Authorization: Bearer KEY'")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        most = self._limits.body_bytes
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > most:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.arrival_seconds):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._limits.arrival_seconds
            raise _RefusedError(
                408, "slow", f"the request did not arrive within {seconds:g} seconds; send it without pauses"
            ) from None

    def _too_large(self) -> _RefusedError:
        most = self._limits.body_bytes
        return _RefusedError(413, "size", f"the request is larger than {most} bytes; send fewer or shorter texts at a time")

    async def _drain(self, receive: Receive) -> None:
        left = _DRAINED
        try:
            async with asyncio.timeout(self._limits.arrival_seconds):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns the body once, then what the client sends next."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, refusal: _RefusedError) -> None:
    content = json.dumps({"error": {"code": refusal.code, "message": refusal.message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    else:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
