"""What a secure sum will cost a client, told before anything is sent: its messages, of the right shapes and without content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ifedicl.federation.messages import (
    BeginReply,
    BeginRequest,
    ContextRequest,
    DealReply,
    DealRequest,
    MaskReply,
    MaskRequest,
    Reply,
    Request,
    RevealReply,
    RevealRequest,
    VectorsReply,
    VectorsRequest,
    encode,
)
from ifedicl.federation.secure.quantised import SUMS, count_of, layout_of
from ifedicl.federation.secure.sum_client import SEALED_CURSOR_SIZE
from ifedicl.ledger.entries import Head
from ifedicl.secagg.keys import KEY_SIZE, SIGNATURE_SIZE
from ifedicl.secagg.party import SEALED_SIZE
from ifedicl.secagg.shamir import SIZE
from ifedicl.settings import PrivacySettings

_HEAD = Head(100, "0" * 64)


def expected_traffic(asked: Request, reply: Reply, clients: Sequence[str], rules: PrivacySettings) -> dict[str, int]:
    """Bytes ``down`` to one client and ``up`` from it, for one step in which no client is lost and each keeps a ledger."""
    down, up = ([asked], [reply]) if isinstance(asked, ContextRequest) else _messages(asked, reply, clients, rules)
    up = [replace(message, head=_HEAD) for message in up]
    return {"down": sum(len(encode(message)) for message in down), "up": sum(len(encode(message)) for message in up)}


def _messages(
    asked: Request, reply: Reply, clients: Sequence[str], rules: PrivacySettings
) -> tuple[list[Request], list[Reply]]:
    session, count, others = "0" * 32, len(clients), len(clients) - 1
    keys = bytes(KEY_SIZE), bytes(KEY_SIZE), bytes(SIGNATURE_SIZE)
    summed = SUMS[type(asked)]
    layout = layout_of(summed.rule.apart(reply))
    cursor, dtype = ("", "float32") if not isinstance(reply, VectorsReply) else ("0" * SEALED_CURSOR_SIZE, reply.dtype)
    content = encode(replace(asked, cursor="") if isinstance(asked, VectorsRequest) else asked)
    sealed, everyone = (bytes(SEALED_SIZE),) * others, tuple(range(count))
    down: list[Request] = [
        BeginRequest(session, rules, content, head=_HEAD),
        DealRequest(session, tuple(clients), (keys,) * count),
        MaskRequest(session, everyone[1:], sealed),
        RevealRequest(session, everyone),
    ]
    up: list[Reply] = [
        BeginReply(session, *keys, layout, dtype, cursor),
        DealReply(session, sealed, bytes(KEY_SIZE)),
        MaskReply(session, np.zeros((count_of(layout), summed.grid(rules).bits // 8), dtype=np.uint8)),
        RevealReply(session, (bytes(SIZE),) * count),
    ]
    return down, up
