"""Sample messages of one secure sum, made from those of :mod:`ifedicl.federation.sample_exchange`. Nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence

from ifedicl.federation import messages
from ifedicl.federation.messages import Reply, Request
from ifedicl.federation.secure.forms import short_form
from ifedicl.federation.secure.quantised import SUMS, layout_of
from ifedicl.federation.secure.sum_client import SEALED_CURSOR_SIZE, SESSION_SIZE
from ifedicl.secagg.keys import KEY_SIZE, SIGNATURE_SIZE
from ifedicl.secagg.roster import TAG_SIZE, deal_size
from ifedicl.secagg.shamir import SIZE
from ifedicl.settings import Method


def sample_sum(
    request: messages.StepRequest, reply: Reply, clients: Sequence[str], method: Method, *, most: bool = False
) -> tuple[list[Request], list[Reply]]:
    """All messages to one client and from it, for one step without dropout. A job and a context stay as they are.

    Context vectors are in the first sum of a run, in which each client is also told of the others.

    Args:
        request: of the step.
        reply: of one client; it goes into the sum.
        clients: names of all clients.
        method: has the rules of the sums.
        most: whether all clients deal a second time, because others are ready than were expected.
    """
    if isinstance(request, messages.JobRequest | messages.ContextRequest):
        return [request], [reply]
    assert method.privacy is not None
    session, count, summed = bytes(SESSION_SIZE), len(clients), SUMS[type(request)]
    layout = layout_of(summed.rule.apart(reply))
    short = None if method.promises_noise else short_form(method.calibration, request)
    form = (short or summed).form(layout)
    cursor, dtype = ("", "float32") if not isinstance(reply, messages.VectorsReply) else ("0" * SEALED_CURSOR_SIZE, reply.dtype)
    everyone, tags = tuple(range(count)), bytes(TAG_SIZE * (count - 1))
    deal = bytes(deal_size(count, min(count, method.privacy.threshold(count))))
    is_first = isinstance(request, messages.VectorsRequest)
    begin = messages.BeginRequest(
        session,
        messages.encode(request),
        introduce=is_first,
        roster=() if is_first else everyone,
    )
    key, signature = bytes(KEY_SIZE), bytes(SIGNATURE_SIZE)
    told = tuple((number, name, key, signature) for number, name in enumerate(clients))
    down: list[Request] = [
        begin,
        *([messages.DealRequest(session, everyone, told if is_first else ())] if is_first or most else []),
        messages.MaskRequest(session, everyone),
        messages.AgreeRequest(session, everyone),
        messages.RevealRequest(session, everyone[1:], tags),
    ]
    up: list[Reply] = [
        messages.BeginReply(session, layout, dtype, cursor, *((key + signature, b"") if is_first else (b"", deal))),
        *([messages.DealReply(session, deal)] if is_first or most else []),
        messages.MaskReply(session, bytes(form.size)),
        messages.AgreeReply(session, tags),
        messages.RevealReply(session, bytes(SIZE), b""),
    ]
    return down, up
