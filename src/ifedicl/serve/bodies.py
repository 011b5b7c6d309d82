"""Bodies of requests: read as what a route takes, or refused with the field, what it was and what is allowed."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Mapping
from typing import get_args

from fastapi import Request as HttpRequest
from fastapi import Response
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ifedicl.serve.asked.any_route import Request
from ifedicl.serve.faults import fault

_GZIP = b"\x1f\x8b"
_JSON_KINDS: Mapping[type, str] = {str: "text", bool: "true or false", list: "a list", dict: "an object"}


async def read(request: HttpRequest, kind: type[Request]) -> Request | Response:
    """The body as a request of this kind, or the response that says what is wrong with it."""
    body = (await request.body()).removeprefix(codecs.BOM_UTF8)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity" or body.startswith(_GZIP):
        received = "gzip" if coding == "identity" else coding[:40]
        return fault(415, "encoding", f"Content-Encoding: received {received}; allowed: none. Send it without compression")
    try:
        asked = kind.model_validate_json(body)
    except ValidationError as error:
        return _invalid(error, kind)
    if twice := _repeated(body, kind):
        return fault(422, "field", f"{', '.join(twice)}: received more than once; allowed: once. Remove one")
    return asked


def _invalid(error: ValidationError, kind: type[Request]) -> Response:
    """The response that names the wrong fields and the kinds of their values, never their content: that may be a text."""
    faults = error.errors(include_url=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        return fault(400, "json", f"{faults[0]['msg']}; send JSON in UTF-8")
    return fault(422, "field", "; ".join(_reason(item, kind) for item in faults[:5]))


def _reason(item: ErrorDetails, kind: type[Request]) -> str:
    """Which field of a body is wrong; of lists with the number from 0."""
    *holder, last = item["loc"] or ("",)
    owner = _model_at(kind, holder)
    if item["type"] == "extra_forbidden":
        place = ".".join(map(str, holder)) or str(last)[:40]
        return f"{place}: received a name that does not exist; allowed: {', '.join(owner.model_fields)}. Leave it out"
    if not item["loc"]:
        allowed = ", ".join(kind.model_fields)
        return f"request: received {_kind_of(item)}; allowed: an object with {allowed}. Send such an object"
    place, field = ".".join(map(str, item["loc"])), _field_at(kind, item["loc"])
    received, remedy = ("nothing", "Add it") if item["type"] == "missing" else (_kind_of(item), "Send another value")
    return f"{place}: received {received}; allowed: {field.description}. {remedy}"


def _field_at(kind: type[BaseModel], place: tuple[int | str, ...]) -> FieldInfo:
    """The innermost field of a place in a body."""
    name = next(part for part in reversed(place) if isinstance(part, str))
    return _model_at(kind, place[: len(place) - 1 - place[::-1].index(name)]).model_fields[name]


def _model_at(kind: type[BaseModel], place: tuple[int | str, ...] | list[int | str]) -> type[BaseModel]:
    """The model of the object at a place in a body."""
    for part in place:
        if isinstance(part, str):
            inner = get_args(kind.model_fields[part].annotation)
            kind = next((each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)), kind)
    return kind


def _kind_of(item: ErrorDetails) -> str:
    """The kind of a JSON value, with the length of a list that is too long or too short."""
    value = item["input"]
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    if isinstance(value, list) and item["type"] in ("too_long", "too_short"):
        return f"a list of {len(value)}"
    return _JSON_KINDS.get(type(value), "a number")


def _repeated(body: bytes, kind: type[BaseModel]) -> list[str]:
    """Fields that stand in one of the body's objects more than once; JSON readers take the last one without a word.

    An object that another one replaces was never read: its names may be anything, and are not repeated.
    """
    twice: dict[str, None] = {}

    def count(pairs: list[tuple[str, object]]) -> None:
        if len(pairs) > len(dict(pairs)):
            twice.update(dict.fromkeys(name for name, number in Counter(name for name, _ in pairs).items() if number > 1))

    json.loads(body, object_pairs_hook=count)
    if not twice:
        return []
    known = {name for field in kind.model_fields for name in (field, *_model_at(kind, (field,)).model_fields)}
    return list(dict.fromkeys(name if name in known else "a name that does not exist" for name in twice))
