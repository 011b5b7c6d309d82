"""What crosses between coordinator and clients: requests and replies, and their bytes.

A message is a safetensors frame: raw little-endian arrays after a JSON header. On the wire an envelope adds a ledger's head.
Everything else that leaves a client is a field of a reply.
"""

from ifedicl.federation.messages.codec import Reply, Request, StepRequest, decode_reply, decode_request, encode
from ifedicl.federation.messages.envelope import Envelope, Frame
from ifedicl.federation.messages.frames import Arrays, Header, RequestMessage, pack, unpack
from ifedicl.federation.messages.replies import (
    CompareReply,
    ContextReply,
    EvaluateReply,
    Failure,
    FailureCode,
    GradientReply,
    JobReply,
    StatisticsReply,
    UpdateReply,
    VectorsReply,
)
from ifedicl.federation.messages.requests import (
    CompareRequest,
    ContextRequest,
    EvaluateRequest,
    GradientRequest,
    JobRequest,
    StatisticsRequest,
    UpdateRequest,
    VectorsRequest,
)
from ifedicl.federation.messages.secure_sum import (
    AgreeReply,
    AgreeRequest,
    BeginReply,
    BeginRequest,
    DealReply,
    DealRequest,
    Layout,
    MaskReply,
    MaskRequest,
    ObjectReply,
    RevealReply,
    RevealRequest,
    SumRequest,
)

__all__ = [
    "AgreeReply",
    "AgreeRequest",
    "Arrays",
    "BeginReply",
    "BeginRequest",
    "CompareReply",
    "CompareRequest",
    "ContextReply",
    "ContextRequest",
    "DealReply",
    "DealRequest",
    "Envelope",
    "EvaluateReply",
    "EvaluateRequest",
    "Failure",
    "FailureCode",
    "Frame",
    "GradientReply",
    "GradientRequest",
    "Header",
    "JobReply",
    "JobRequest",
    "Layout",
    "MaskReply",
    "MaskRequest",
    "ObjectReply",
    "Reply",
    "Request",
    "RequestMessage",
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
    "encode",
    "pack",
    "unpack",
]
