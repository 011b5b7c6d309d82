"""One example of each request and reply."""

from __future__ import annotations

import numpy as np

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32, ContextVectors
from ifedicl.federation import messages
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.metrics import Comparison, Tally
from tests.support import tiny
from tests.support.jobs import job_of
from tests.support.readouts import asked_products, drawn_products, drawn_sums

LAYERS, WIDTH = 3, 8


def drawn(seed: int, *shape: int) -> Array32:
    """Random numbers of a seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


SCALES = Coefficients(drawn(1, LAYERS, 2, 2))
READOUT = Readout(drawn(2, 2, WIDTH + 3))
CORE = Coefficients(SCALES.scales, drawn(3, LAYERS, 2, 2, 2)).rounded
BASIS = drawn(4, LAYERS, 2, 2, WIDTH)
GLOBAL = drawn(5, LAYERS, 2, WIDTH)
MEANS = drawn(6, 2, LAYERS, 2, WIDTH)
SUMS = ContextVectors.from_wire(MEANS, np.array([3, 4]))
JOB = job_of(tiny.method(seed=5), ModelShape("f" * 64, LAYERS, WIDTH), tiny.MANY_TOKENS)
REQUESTS: list[Request] = [
    messages.JobRequest(JOB),
    messages.VectorsRequest(JOB.digest, "3:abcd"),
    messages.ContextRequest(JOB.digest, Context(GLOBAL, BASIS), "float32"),
    messages.UpdateRequest("0123456789abcdef", 7, 3, 10, SCALES),
    messages.EvaluateRequest(
        "0123456789abcdef", CORE, (READOUT.coarse, READOUT.coarse.mixed(2.0, 0.0)), (1.0, 4.0), (0.0, 0.5)
    ),
    messages.StatisticsRequest("0123456789abcdef", SCALES),
    messages.ProductsRequest("0123456789abcdef", SCALES, asked_products(WIDTH + 2)),
    messages.GradientRequest("0123456789abcdef", 7, CORE),
    messages.CompareRequest("0123456789abcdef", CORE, READOUT),
]
READOUT_SUMS = drawn_sums(12)
REPLIES: list[Reply] = [
    messages.JobReply(),
    messages.VectorsReply(SUMS, "7:abcd", replaces=True, dtype="float32", wire_dtype="float32"),
    messages.ContextReply(),
    messages.UpdateReply(SCALES, 12, 0.625),
    messages.GradientReply(GradientSum({name: array * 3 for name, array in CORE.arrays.items()}, 12, 7.5)),
    messages.EvaluateReply((Tally(9, 4, 3.1415926535897931), Tally(9, 5, 2.0))),
    messages.StatisticsReply(READOUT_SUMS),
    messages.ProductsReply(drawn_products(12)),
    messages.CompareReply(Comparison(Tally(9, 4, 3.5), Tally(9, 5, 2.0), 0.75, 3, (4, 5), (5, 4))),
    *(Failure(code) for code in FailureCode),
]


def kind_of(message: Request | Reply) -> str:
    """A test's id for a message."""
    return message.kind if not isinstance(message, Failure) else f"failure-{message.code}"
