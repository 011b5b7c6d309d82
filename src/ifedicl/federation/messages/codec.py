"""All kinds of messages, and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, TypeVar, get_args

from ifedicl.errors import MessageError
from ifedicl.federation.messages import replies, requests
from ifedicl.federation.messages.frames import pack, unpack
from ifedicl.federation.messages.replies import Failure
from ifedicl.federation.messages.secure_sum import SumReply, SumRequest

StepRequest: TypeAlias = (
    requests.JobRequest
    | requests.VectorsRequest
    | requests.ContextRequest
    | requests.UpdateRequest
    | requests.GradientRequest
    | requests.EvaluateRequest
    | requests.StatisticsRequest
    | requests.ProductsRequest
    | requests.NoisyStatisticsRequest
    | requests.CompareRequest
)
"""The plain requests of a coordinator. The other requests carry one of these through a secure sum."""
Request: TypeAlias = StepRequest | SumRequest
Reply: TypeAlias = (
    replies.JobReply
    | replies.VectorsReply
    | replies.ContextReply
    | replies.UpdateReply
    | replies.GradientReply
    | replies.EvaluateReply
    | replies.StatisticsReply
    | replies.ProductsReply
    | replies.NoisyStatisticsReply
    | replies.CompareReply
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
        MessageError: the bytes are torn, not a request, or have wrong fields.
    """
    return _decoded(data, _REQUESTS)


def decode_reply(data: bytes) -> Reply:
    """The reply that :func:`encode` made.

    Raises:
        MessageError: the bytes are torn, not a reply, or have wrong fields.
    """
    return _decoded(data, _REPLIES)


def _decoded(data: bytes, kinds: Mapping[str, type[_AnyMessage]]) -> _AnyMessage:
    def arrays_of(kind: str) -> frozenset[str]:
        if kind not in kinds:
            raise MessageError(
                f"kind: received {kind[:80]!r}; allowed: {', '.join(kinds)}. Both sides need the same ifedicl version"
            )
        return kinds[kind].array_names

    kind, header, arrays = unpack(data, arrays_of)
    try:
        return kinds[kind].from_wire(header, arrays)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise MessageError(f"a {kind} message whose fields do not fit: {error}") from error
