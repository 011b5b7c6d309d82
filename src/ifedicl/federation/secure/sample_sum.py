"""Sample messages of one secure sum, made from those of :mod:`ifedicl.federation.sample_exchange`. Nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ifedicl.federation import messages
from ifedicl.federation.messages import Reply, Request
from ifedicl.federation.secure.quantised import SUMS, count_of, layout_of
from ifedicl.federation.secure.sum_client import SEALED_CURSOR_SIZE
from ifedicl.secagg.keys import KEY_SIZE, SIGNATURE_SIZE
from ifedicl.secagg.party import SEALED_SIZE
from ifedicl.secagg.shamir import SIZE


def sample_sum(request: messages.StepRequest, reply: Reply, clients: Sequence[str]) -> tuple[list[Request], list[Reply]]:
    """All messages to one client and from it, for one step without dropout. A job and a context stay as they are.

    Args:
        request: of the step.
        reply: of one client; it goes into the sum.
        clients: names of all clients.
    """
    if isinstance(request, messages.JobRequest | messages.ContextRequest):
        return [request], [reply]
    session, count, others = "0" * 32, len(clients), len(clients) - 1
    keys = bytes(KEY_SIZE), bytes(KEY_SIZE), bytes(SIGNATURE_SIZE)
    summed = SUMS[type(request)]
    layout = layout_of(summed.rule.apart(reply))
    cursor, dtype = ("", "float32") if not isinstance(reply, messages.VectorsReply) else ("0" * SEALED_CURSOR_SIZE, reply.dtype)
    sealed, everyone = (bytes(SEALED_SIZE),) * others, tuple(range(count))
    down: list[Request] = [
        messages.BeginRequest(session, messages.encode(request)),
        messages.DealRequest(session, tuple(clients), (keys,) * count),
        messages.MaskRequest(session, everyone[1:], sealed),
        messages.AgreeRequest(session, everyone),
        messages.RevealRequest(session, everyone, (bytes(SIGNATURE_SIZE),) * count),
    ]
    up: list[Reply] = [
        messages.BeginReply(session, *keys, layout, dtype, cursor),
        messages.DealReply(session, sealed, bytes(KEY_SIZE)),
        messages.MaskReply(session, np.zeros((count_of(layout), summed.grid.bits // 8), dtype=np.uint8)),
        messages.AgreeReply(session, bytes(SIGNATURE_SIZE)),
        messages.RevealReply(session, (bytes(SIZE),) * count),
    ]
    return down, up
