"""Connects the transport with a site's client: bytes in, bytes out, never an exception."""

from __future__ import annotations

import logging

from ifedicl.errors import MessageError
from ifedicl.federation.handler import Endpoint
from ifedicl.federation.messages import Envelope, Failure, FailureCode

_log = logging.getLogger(__name__)


def answer(endpoint: Endpoint | None, wire: object) -> bytes:
    """The reply to ``wire``, as bytes. ``endpoint`` is None if the client could not be opened; ``wire`` may be anything.

    Never raises: an error's text could quote the owner's text, so it stays in the owner's log, and only a code is sent.
    """
    try:
        if not isinstance(wire, bytes):
            return _failure(FailureCode.BAD_REQUEST)
        envelope = Envelope.from_bytes(wire)
        return _failure(FailureCode.INTERNAL) if endpoint is None else endpoint.handle(envelope).to_bytes()
    except MessageError as error:
        _log.error("received bytes that are not a request of ifedicl: %.200s", error)
        return _failure(FailureCode.BAD_REQUEST)
    except Exception:
        _log.exception("a request could not be answered")
        return _failure(FailureCode.INTERNAL)


def _failure(code: FailureCode) -> bytes:
    return Envelope.of(Failure(code)).to_bytes()
