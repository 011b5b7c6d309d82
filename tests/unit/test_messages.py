"""Messages keep every number on their way, and their sizes are small."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import get_args

import numpy as np
import pytest
from safetensors.numpy import save

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.readout import Readout
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.refinement import Refinement
from ifedicl.core.subspace import Context
from ifedicl.core.units import Units
from ifedicl.core.vectors import ContextVectors
from ifedicl.errors import MessageError
from ifedicl.federation.messages import (
    ContextReply,
    Envelope,
    EvaluateRequest,
    Failure,
    FailureCode,
    Frame,
    ProductsReply,
    Reply,
    Request,
    StatisticsReply,
    StepRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    decode_reply,
    decode_request,
    encode,
    unpack,
)
from ifedicl.ledger.entries import Head
from ifedicl.progress import STEPS
from tests.support.messages import MEANS, REPLIES, REQUESTS, SUMS, kind_of


def assert_same(first: object, second: object) -> None:
    """Fields equal bit for bit; dataclasses with arrays have no ``==`` of their own."""
    assert type(first) is type(second)
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, np.ndarray):
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(value, other)
        elif isinstance(value, dict):
            assert value.keys() == other.keys()
            for key, array in value.items():
                np.testing.assert_array_equal(array, other[key])
        elif isinstance(
            value, Coefficients | Context | ContextVectors | GradientSum | Readout | ReadoutSums | Refinement | Units
        ):
            assert_same(value, other)
        elif isinstance(value, tuple) and isinstance(next(iter(value), None), Readout):
            assert len(value) == len(other)
            for ours, theirs in zip(value, other, strict=True):
                assert_same(ours, theirs)
        else:
            assert value == other


@pytest.mark.parametrize("request_", REQUESTS, ids=kind_of)
def test_a_request_comes_back_as_it_went(request_: Request) -> None:
    assert_same(request_, decode_request(encode(request_)))


EXACT = [reply for reply in REPLIES if not isinstance(reply, StatisticsReply | ProductsReply)]  # rounded: test_readout_sums.py


@pytest.mark.parametrize("reply", EXACT, ids=kind_of)
def test_a_reply_comes_back_as_it_went(reply: Reply) -> None:
    assert_same(reply, decode_reply(encode(reply)))


@pytest.mark.parametrize("message", [*REQUESTS, *REPLIES], ids=kind_of)
@pytest.mark.parametrize("head", [None, Head(7, "0123456789abcdef" * 4), Head(2**53 - 1, "f" * 64)], ids=["none", "7", "last"])
def test_the_head_of_a_ledger_travels_beside_every_message_and_leaves_its_bytes_as_they_are(
    message: Request | Reply, head: Head | None
) -> None:
    sent = Envelope.of(message, head)
    received = Envelope.from_bytes(sent.to_bytes())
    assert received.head == head
    # What is hashed for the ledger is the same on both sides: it is the bytes of the message alone.
    assert received.frame.data == encode(message)
    assert received.frame.digest == sent.frame.digest == hashlib.sha256(encode(message)).hexdigest()
    assert len(sent.to_bytes()) == sent.size == len(encode(message)) + (46 if head else 6)


@pytest.mark.parametrize("head", [None, Head(7, "0" * 64)])
def test_an_envelope_that_is_torn_or_of_another_version_is_refused(head: Head | None) -> None:
    whole = Envelope.of(ContextReply(), head).to_bytes()
    for length in range(len(whole)):
        with pytest.raises(MessageError):
            _ = Envelope.from_bytes(whole[:length]).frame.reply
    for version in (2, 4):
        with pytest.raises(MessageError, match=f"version {version}, not 3; both sides need the same ifedicl version"):
            Envelope.from_bytes(whole[:4] + bytes([version]) + whole[5:])


def test_a_head_that_no_ledger_has_is_refused() -> None:
    whole = Envelope.of(ContextReply(), Head(7, "0" * 64)).to_bytes()
    for entries in (0, 2**53, 2**64 - 1):
        with pytest.raises(MessageError):
            Envelope.from_bytes(whole[:6] + struct.pack("<Q", entries) + whole[14:])


def test_a_message_of_an_ifedicl_without_envelopes_is_refused_and_the_error_says_so() -> None:
    """Earlier versions sent the frame alone."""
    with pytest.raises(MessageError, match="both sides need the same ifedicl version"):
        Envelope.from_bytes(encode(Failure(FailureCode.LATE)))


def test_what_stands_behind_the_header_of_a_frame_is_refused() -> None:
    """Earlier versions had the head there."""
    old = {"version": 1, "head": [7, "0" * 64]}
    with pytest.raises(MessageError):
        decode_reply(save({}, metadata={"message": json.dumps(["context_reply", {}, old])}))


def test_a_frame_knows_its_shapes_and_is_read_once() -> None:
    reply = UpdateReply(Coefficients(np.ones((3, 2, 2), dtype=np.float32)), 5, 0.5)
    frame = Frame.of(reply)
    assert frame.shapes == {"scales": [3, 2, 2]}
    assert frame.reply is frame.reply
    assert Frame.of(ContextReply()).shapes == {}


def test_means_in_half_precision_come_back_as_half_precision_numbers() -> None:
    halved = VectorsReply(SUMS, "7:abcd", replaces=True, dtype="float32", wire_dtype="float16")
    whole = VectorsReply(SUMS, "7:abcd", replaces=True, dtype="float32", wire_dtype="float32")
    received = decode_reply(encode(halved))
    assert isinstance(received, get_args(Reply))
    np.testing.assert_allclose(received.vectors.means, MEANS.astype(np.float16), rtol=1e-12)
    assert len(encode(whole)) - len(encode(halved)) == MEANS.size * 2


def test_the_scalars_of_32_layers_take_512_raw_bytes() -> None:
    request = UpdateRequest("0123456789abcdef", 7, 3, 10, Coefficients.identity(Form(32)))
    _, _, arrays = unpack(encode(request))
    assert {name: array.nbytes for name, array in arrays.items()} == {"scales": 512}
    # The paper's number, and it is in the frame: nothing else in it grows with the model.
    other = UpdateRequest("0123456789abcdef", 7, 3, 10, Coefficients.identity(Form(64)))
    assert len(encode(other)) - len(encode(request)) == pytest.approx(512, abs=8)


def test_an_update_request_and_its_reply_of_32_layers_are_under_one_and_a_half_kilobytes() -> None:
    scales = Coefficients.identity(Form(32))
    assert len(encode(UpdateRequest("0123456789abcdef", 10**6, 10**6, 10**6, scales))) < 1_500
    assert len(encode(UpdateReply(scales, 10**9, 1.2345678901234567))) < 1_500


def test_a_round_of_a_subspace_fits_sixteen_kilobytes_a_direction() -> None:
    coefficients = Coefficients.identity(Form(30, rank=8))  # SmolLM2-135M
    sent: list[Request | Reply] = [
        UpdateRequest("0123456789abcdef", 7, 3, 10, coefficients),
        UpdateReply(coefficients, 12, 0.625),
        EvaluateRequest("0123456789abcdef", coefficients),
    ]
    update, reply, evaluate = (len(encode(message)) for message in sent)
    assert update + evaluate <= 2 * 16 * 1024
    assert update <= 9 * 1024
    assert reply <= 9 * 1024


def test_every_request_has_a_name_for_people() -> None:
    assert set(STEPS) == {request.kind for request in get_args(StepRequest)}
