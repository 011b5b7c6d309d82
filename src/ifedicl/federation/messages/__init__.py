"""What crosses between coordinator and clients: requests and replies, and their bytes.

A message on the wire is a safetensors frame: raw little-endian arrays behind a JSON header. Everything that leaves a client
is a field of a reply; there is no other door.
"""

from ifedicl.federation.messages.codec import Reply, Request, StepRequest, decode_reply, decode_request, encode, received
from ifedicl.federation.messages.frames import Arrays, Header, Message, digest, pack, unpack
from ifedicl.federation.messages.replies import (
    CompareReply,
    ContextReply,
    EvaluateReply,
    Failure,
    FailureCode,
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
from ifedicl.federation.messages.secure_sum import (
    BeginReply,
    BeginRequest,
    DealReply,
    DealRequest,
    Layout,
    MaskReply,
    MaskRequest,
    RevealReply,
    RevealRequest,
    SumRequest,
)

__all__ = [
    "Arrays",
    "BeginReply",
    "BeginRequest",
    "CompareReply",
    "CompareRequest",
    "ContextReply",
    "ContextRequest",
    "DealReply",
    "DealRequest",
    "EvaluateReply",
    "EvaluateRequest",
    "Failure",
    "FailureCode",
    "GradientReply",
    "GradientRequest",
    "Header",
    "Layout",
    "MaskReply",
    "MaskRequest",
    "Message",
    "Reply",
    "Request",
    "RevealReply",
    "RevealRequest",
    "StatisticsReply",
    "StatisticsRequest",
    "StepRequest",
    "SumRequest",
    "UpdateReply",
    "UpdateRequest",
    "VectorsReply",
    "VectorsRequest",
    "decode_reply",
    "decode_request",
    "digest",
    "encode",
    "pack",
    "received",
    "unpack",
]
