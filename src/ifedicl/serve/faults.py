"""Errors as log lines and as HTTP responses."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from fastapi import Response
from fastapi.responses import JSONResponse

from ifedicl.errors import (
    AdapterError,
    BusyError,
    DataError,
    IfediclError,
    StoppedError,
    TaskError,
    UnknownRunError,
    WrongRouteError,
)

_STATUS: Mapping[type[IfediclError], tuple[int, str]] = {
    AdapterError: (404, "adapter"),
    DataError: (422, "text"),
    TaskError: (422, "text"),  # a chat template that raises for this text
    WrongRouteError: (422, "kind"),
    UnknownRunError: (404, "run"),
    BusyError: (429, "busy"),
    StoppedError: (503, "stopping"),
}


def fault(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error response. All errors have this form."""
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def error_response(error: IfediclError) -> Response:
    """The response to one of our own errors."""
    status, code = _STATUS.get(type(error), (500, "server"))
    return fault(status, code, str(error), {"Retry-After": "1"} if status == 429 else None)


def type_and_place(error: Exception) -> str:
    """Type and place of an error, for the log. Its message may quote a text and is not logged."""
    return f"{type(error).__name__} at {traceback.extract_tb(error.__traceback__)[-1][:3]}"
