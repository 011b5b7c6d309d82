"""Which messages there are, and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, TypeVar, get_args

from ifedicl.errors import MessageError
from ifedicl.federation.messages.frames import pack, unpack
from ifedicl.federation.messages.replies import (
    CompareReply,
    ContextReply,
    EvaluateReply,
    Failure,
    GradientReply,
    StatisticsReply,
    UpdateReply,
    VectorsReply,
)
from ifedicl.federation.messages.requests import (
    CompareRequest,
    ContextRequest,
    EvaluateRequest,
    GradientRequest,
    StatisticsRequest,
    UpdateRequest,
    VectorsRequest,
)
from ifedicl.federation.messages.secure_sum import SumReply, SumRequest

StepRequest: TypeAlias = (
    VectorsRequest | ContextRequest | UpdateRequest | GradientRequest | EvaluateRequest | StatisticsRequest | CompareRequest
)
"""What a coordinator asks; the rest of the requests carry one of these through a secure sum."""
Request: TypeAlias = StepRequest | SumRequest
Reply: TypeAlias = (
    VectorsReply
    | ContextReply
    | UpdateReply
    | GradientReply
    | EvaluateReply
    | StatisticsReply
    | CompareReply
    | SumReply
    | Failure
)

_REQUESTS: Mapping[str, type[Request]] = {message.kind: message for message in get_args(Request)}
_REPLIES: Mapping[str, type[Reply]] = {message.kind: message for message in get_args(Reply)}
_AnyMessage = TypeVar("_AnyMessage", Request, Reply)


def encode(message: Request | Reply) -> bytes:
    """The bytes of a message: its frame."""
    header, arrays = message.to_wire()
    return pack(message.kind, header, arrays)


def decode_request(data: bytes) -> Request:
    """The request that :func:`encode` made.

    Raises:
        MessageError: torn, not a request, or with fields that do not fit it.
    """
    return _decoded(data, _REQUESTS)


def decode_reply(data: bytes) -> Reply:
    """The reply that :func:`encode` made.

    Raises:
        MessageError: torn, not a reply, or with fields that do not fit it.
    """
    return _decoded(data, _REPLIES)


def _decoded(data: bytes, kinds: Mapping[str, type[_AnyMessage]]) -> _AnyMessage:
    kind, header, arrays = unpack(data)
    if kind not in kinds:
        raise MessageError(f"a message of kind {kind!r}; allowed: {', '.join(kinds)}. Both sides need the same ifedicl version")
    try:
        return kinds[kind].from_wire(header, arrays)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise MessageError(f"a {kind} message whose fields do not fit: {error}") from error
