"""What stands between the carrier and a site's client: bytes in, bytes out, and never an exception."""

from __future__ import annotations

import logging

from ifedicl.errors import MessageError
from ifedicl.federation.handler import Endpoint
from ifedicl.federation.messages import Envelope, Failure, FailureCode

_log = logging.getLogger(__name__)


def answer(endpoint: Endpoint | None, wire: object) -> bytes:
    """The reply to ``wire``, as bytes.

    Never raises: an error's text could carry the owner's text, so it stays in the owner's own log and a code goes out.

    Args:
        endpoint: None where the client could not be opened.
        wire: what the carrier brought; it may be anything.
    """
    try:
        if not isinstance(wire, bytes):
            return _failure(FailureCode.BAD_REQUEST)
        envelope = Envelope.from_bytes(wire)
        _ = envelope.frame.request  # whether it is one, before anyone is asked
        return _failure(FailureCode.INTERNAL) if endpoint is None else endpoint.handle(envelope).to_bytes()
    except MessageError as error:
        _log.error("not a request of ours: %s", error)
        return _failure(FailureCode.BAD_REQUEST)
    except Exception:
        _log.exception("a request could not be answered")
        return _failure(FailureCode.INTERNAL)


def _failure(code: FailureCode) -> bytes:
    return Envelope.of(Failure(code)).to_bytes()
