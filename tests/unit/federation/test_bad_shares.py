"""Secure sums of ten clients, one to three of whom reveal or deal what does not fit: the others' sum comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ifedicl.federation.messages import BeginRequest, DealReply, Reply, Request, RevealReply, SharesReply, UpdateReply
from ifedicl.federation.reply_sums import Total
from ifedicl.settings import PrivacySettings
from tests.support.engines import RecordingEngine
from tests.support.secure import REQUESTS, behind, fixed, summed

RULES = PrivacySettings(mode="secure", dropout=0.3, min_examples=2)  # 7 of 10 must survive


def total_of(bad: tuple[str, ...], damage: Callable[[Reply], Reply]) -> tuple[UpdateReply, int, list[str], UpdateReply]:
    """The total, the tries, who began the last one, and their plain total."""
    clients = fixed(10)

    def change(name: str, _request: Request, reply: Reply) -> Reply:
        return damage(reply) if name in bad else reply

    engine = RecordingEngine(behind(clients, RULES), change)
    reply = summed(engine, REQUESTS["update"], RULES).reply
    begun = [(request.session, name) for name, request, _ in engine.crossed if isinstance(request, BeginRequest)]
    last = [name for session, name in begun if session == begun[-1][0]]
    plain = Total(UpdateReply)
    for client in clients:
        if client.name in last:
            plain.add(client.given["update"])
    assert isinstance(reply, UpdateReply)
    assert isinstance(plain.reply, UpdateReply)
    return reply, len({session for session, _ in begun}), last, plain.reply


def bent_shares(reply: Reply) -> Reply:
    if isinstance(reply, RevealReply):
        return replace(reply, own=bent(reply.own), pairs=bent(reply.pairs))
    return replace(reply, shares=bent(reply.shares)) if isinstance(reply, SharesReply) else reply


def bent(elements: bytes) -> bytes:
    """Each element of the field with one bit changed."""
    return bytes(byte ^ (place % 16 == 1) for place, byte in enumerate(elements))


def false_commitment(reply: Reply) -> Reply:
    """Nobody's shares fit, and the dealer's own secret does not either."""
    return replace(reply, deal=reply.deal[:-36] + bytes(16) + reply.deal[-20:]) if isinstance(reply, DealReply) else reply


@pytest.mark.parametrize("bad", [("c4",), ("c4", "c7"), ("c0", "c1"), ("c0", "c4", "c7")])
def test_up_to_three_of_ten_that_reveal_wrong_shares_stop_nobody(bad: tuple[str, ...]) -> None:
    """More than the one of ten that Reed-Solomon decoding corrects, because each secret can be checked."""
    reply, tries, _, plain = total_of(bad, bent_shares)
    assert (tries, reply.examples) == (1, plain.examples)
    np.testing.assert_allclose(reply.coefficients.scales, plain.coefficients.scales, atol=1e-6)


@pytest.mark.parametrize("bad", [("c4",), ("c4", "c7")])
def test_dealers_whose_shares_do_not_fit_their_commitment_are_left_out(bad: tuple[str, ...]) -> None:
    reply, tries, last, plain = total_of(bad, false_commitment)
    assert (tries, reply.examples, len(last)) == (2, plain.examples, 10 - len(bad))
    assert not set(bad) & set(last)
