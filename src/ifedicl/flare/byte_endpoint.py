"""What stands between the carrier and a site's client: bytes in, bytes out, and never an exception."""

from __future__ import annotations

import logging

from ifedicl.errors import MessageError
from ifedicl.federation.engine import Door
from ifedicl.federation.messages import Failure, FailureCode, decode_request, encode

_log = logging.getLogger(__name__)


def answer(door: Door | None, wire: object) -> bytes:
    """The reply to ``wire``, as bytes.

    Never raises: an error's text could carry the owner's text, so it stays in the owner's own log and a code goes out.

    Args:
        door: None where the client could not be opened.
        wire: what the carrier brought; it may be anything.
    """
    try:
        if not isinstance(wire, bytes):
            return encode(Failure(FailureCode.BAD_REQUEST))
        request = decode_request(wire)
        return encode(Failure(FailureCode.INTERNAL) if door is None else door.handle(request))
    except MessageError as error:
        _log.error("not a request of ours: %s", error)
        return encode(Failure(FailureCode.BAD_REQUEST))
    except Exception:
        _log.exception("a request could not be answered")
        return encode(Failure(FailureCode.INTERNAL))
