"""What crosses the network is small, comes back as it went, and is refused when it is anything else."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.readout import Readout, ReadoutSums
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32, ContextVectors
from ifedicl.data import Role
from ifedicl.errors import FederationError, MessageError
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    ContextReply,
    ContextRequest,
    Envelope,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    Frame,
    GradientReply,
    GradientRequest,
    Reply,
    Request,
    StatisticsReply,
    StatisticsRequest,
    StepRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
    decode_reply,
    decode_request,
    encode,
    pack,
    unpack,
)
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Comparison, Tally
from ifedicl.progress import STEPS
from tests.support import tiny

REPEATABLE = settings(deadline=None, derandomize=True)
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

REQUESTS: list[Request] = [
    VectorsRequest(tiny.TASK, tiny.method(seed=5), "f" * 64, "3:abcd"),
    ContextRequest(tiny.MANY_TOKENS, tiny.method(), "f" * 64, Context(GLOBAL, BASIS), "0123456789abcdef"),
    UpdateRequest("0123456789abcdef", 7, 3, 10, SCALES),
    EvaluateRequest("0123456789abcdef", Role.GATE, CORE, (READOUT, READOUT.sharpened(2.0)), (1.0, 4.0)),
    StatisticsRequest("0123456789abcdef", SCALES),
    GradientRequest("0123456789abcdef", 7, CORE),
    CompareRequest("0123456789abcdef", CORE, READOUT),
]
READOUT_SUMS = ReadoutSums(  # of correlations that a byte holds as they are
    np.array([[4, 6, 1, 0, 0], [6, 9, 0, 1, 0], [1, 0, 2, 0, 0], [0, 1, 0, 2, 0], [0, 0, 0, 0, 3]], "f8"), np.ones((5, 2)), 3
)
REPLIES: list[Reply] = [
    VectorsReply(SUMS, "7:abcd", replaces=True, dtype="float32", wire_dtype="float32"),
    ContextReply(),
    UpdateReply(SCALES, 12, 0.625),
    GradientReply(GradientSum({name: array * 3 for name, array in CORE.arrays.items()}, 12, 7.5)),
    EvaluateReply((Tally(9, 4, 3.1415926535897931), Tally(9, 5, 2.0))),
    StatisticsReply(READOUT_SUMS),
    CompareReply(Comparison(Tally(9, 4, 3.5), Tally(9, 5, 2.0), 0.75, 3, (4, 5), (5, 4))),
    *(Failure(code) for code in FailureCode),
]


def kind_of(message: Request | Reply) -> str:
    return message.kind if not isinstance(message, Failure) else f"failure-{message.code}"


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
        elif isinstance(value, Coefficients | Context | ContextVectors | GradientSum | Readout | ReadoutSums):
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


@pytest.mark.parametrize("reply", REPLIES, ids=kind_of)
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
    with pytest.raises(MessageError, match="version 3, not 2; both sides need the same ifedicl version"):
        Envelope.from_bytes(whole[:4] + b"\x03" + whole[5:])


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


@pytest.mark.parametrize("request_", REQUESTS, ids=kind_of)
def test_a_request_cut_anywhere_is_refused(request_: Request) -> None:
    data = encode(request_)

    @REPEATABLE
    @given(st.integers(0, len(data) - 1))
    def check(length: int) -> None:
        with pytest.raises(MessageError):
            decode_request(data[:length])

    check()


@pytest.mark.parametrize("reply", REPLIES[:5], ids=kind_of)
def test_a_reply_cut_at_any_length_is_refused(reply: Reply) -> None:
    data = encode(reply)
    for length in range(len(data)):
        with pytest.raises(MessageError):
            decode_reply(data[:length])


def forged(message: Request | Reply, **changes: object) -> bytes:
    """The frame of a message with other values in its header."""
    kind, header, arrays = unpack(encode(message))
    return pack(kind, header | changes, arrays)


def test_numbers_that_no_float_holds_and_dtypes_of_no_wire_are_refused() -> None:
    sums = StatisticsReply(READOUT_SUMS)
    assert isinstance(decode_reply(forged(sums)), StatisticsReply)
    with pytest.raises(MessageError):
        decode_reply(forged(sums, examples=10**400))
    whole = VectorsReply(SUMS, "7:abcd", replaces=True, dtype="float32", wire_dtype="float32")
    assert isinstance(decode_reply(forged(whole)), VectorsReply)
    for name in ("banana", "object", "float64"):
        with pytest.raises(MessageError, match="allowed: float32, float16"):
            decode_reply(forged(whole, wire_dtype=name))


def test_a_small_request_may_not_ask_for_many_copies_of_a_readout() -> None:
    request = EvaluateRequest("c", Role.SELECTION, Coefficients.identity(Form(LAYERS)), (READOUT,), (1.0,))
    assert isinstance(decode_request(forged(request, temperatures=[1.0] * 64)), EvaluateRequest)
    with pytest.raises(MessageError, match="more than 64"):
        decode_request(forged(request, temperatures=[1.0] * 65))


@REPEATABLE
@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode_reply(data)


@pytest.mark.parametrize("reply", REPLIES[:5], ids=kind_of)
def test_a_reply_with_a_changed_byte_is_refused_or_decoded_but_nothing_else(reply: Reply) -> None:
    data = encode(reply)

    @REPEATABLE
    @given(st.integers(0, len(data) - 1), st.integers(1, 255))
    def check(place: int, change: int) -> None:
        bent = bytearray(data)
        bent[place] ^= change
        try:
            received = decode_reply(bytes(bent))
        except MessageError:
            return
        assert isinstance(received, get_args(Reply))

    check()


@pytest.mark.parametrize("reply", REPLIES[:5], ids=kind_of)
def test_a_reply_is_not_accepted_as_a_request(reply: Reply) -> None:
    with pytest.raises(MessageError, match=r"kind .*allowed: vectors, context, update, gradient, evaluate"):
        decode_request(encode(reply))


@pytest.mark.parametrize("request_", REQUESTS, ids=kind_of)
def test_a_request_is_not_accepted_as_a_reply(request_: Request) -> None:
    with pytest.raises(MessageError, match=r"kind .*allowed: vectors_reply, context_reply"):
        decode_reply(encode(request_))


def test_an_unknown_kind_is_refused_with_the_kinds_that_exist() -> None:
    with pytest.raises(MessageError, match=r"'pickle'.*update_reply.*same ifedicl version"):
        decode_reply(pack("pickle", {}, {}))


def test_a_message_error_is_caught_with_the_other_errors_of_a_federation() -> None:
    with pytest.raises(FederationError):
        decode_reply(b"")


@pytest.mark.parametrize("request_", REQUESTS, ids=kind_of)
def test_a_request_without_one_of_its_fields_is_refused(request_: Request) -> None:
    header, arrays = request_.to_wire()
    for name in header:
        with pytest.raises(MessageError, match=rf"{request_.kind} message"):
            decode_request(pack(request_.kind, {key: value for key, value in header.items() if key != name}, arrays))
    for name in set(arrays) - {"core", "basis", "readouts", "readout"}:  # without these it is a message of the paper's form
        with pytest.raises(MessageError, match=rf"{request_.kind} message"):
            decode_request(pack(request_.kind, header, {key: value for key, value in arrays.items() if key != name}))


@pytest.mark.parametrize("reply", [REPLIES[0], REPLIES[2], REPLIES[4]], ids=kind_of)
def test_a_reply_without_one_of_its_fields_is_refused(reply: Reply) -> None:
    header, arrays = reply.to_wire()
    for name in header:
        with pytest.raises(MessageError, match=rf"{reply.kind} message"):
            decode_reply(pack(reply.kind, {key: value for key, value in header.items() if key != name}, arrays))
    for name in arrays:
        with pytest.raises(MessageError, match=rf"{reply.kind} message"):
            decode_reply(pack(reply.kind, header, {key: value for key, value in arrays.items() if key != name}))


@pytest.mark.parametrize("reply", REPLIES[2:4], ids=kind_of)
def test_a_reply_with_a_field_too_many_is_refused(reply: Reply) -> None:
    header, arrays = reply.to_wire()
    with pytest.raises(MessageError):
        decode_reply(pack(reply.kind, {**header, "text": "a row of the data"}, arrays))


def test_a_failure_with_text_in_place_of_a_code_is_refused() -> None:
    with pytest.raises(MessageError):
        decode_reply(pack("failure", {"code": "ValueError: a row of the data"}, {}))


def test_coefficients_of_a_wrong_shape_are_refused() -> None:
    for shape in [(3, 2), (3, 2, 3), (2, 2, 2, 2), ()]:
        with pytest.raises(MessageError, match="scales"):
            decode_reply(pack("update_reply", {"examples": 1, "loss": 0.1}, {"scales": np.zeros(shape, dtype=np.float32)}))


VECTORS_HEADER = {"cursor": "1:a", "replaces": True, "dtype": "float32", "wire_dtype": "float32"}


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 3, 8), (2,), ()], ids=str)
def test_means_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    arrays = {"means": np.zeros(shape, dtype=np.float32), "counts": np.array([1, 1])}
    with pytest.raises(MessageError):
        decode_reply(pack("vectors_reply", VECTORS_HEADER, arrays))


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param(np.array(3)),
        np.array([[1, 1]]),
        np.array([1, 1, 1]),
    ],
    ids=["a number", "a row", "too many"],
)
def test_counts_of_a_wrong_shape_are_refused(counts: np.ndarray[Any, Any]) -> None:
    # Not by ``pack``, which makes a row of a number.
    metadata = {"kind": "vectors_reply", "header": json.dumps(VECTORS_HEADER)}
    with pytest.raises(MessageError):
        decode_reply(save({"means": MEANS, "counts": counts}, metadata=metadata))


def test_a_single_mean_is_not_spread_over_several_classes() -> None:
    with pytest.raises(MessageError):
        decode_reply(pack("vectors_reply", VECTORS_HEADER, {"means": MEANS[:1], "counts": np.array([3, 4])}))


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("evaluate_reply", {"examples": "many", "correct": 1, "loss_sum": 0.1}),
        ("evaluate_reply", {"examples": 2, "correct": None, "loss_sum": 0.1}),
        ("evaluate_reply", {"examples": 2, "correct": 1, "loss_sum": [0.1]}),
        ("update_reply", {"examples": "a row of the data", "loss": 0.1}),
        ("update_reply", {"examples": 2, "loss": None}),
    ],
    ids=str,
)
def test_a_field_of_a_wrong_type_is_refused(kind: str, header: dict[str, Any]) -> None:
    arrays = {"scales": SCALES.scales} if kind == "update_reply" else {}
    with pytest.raises(MessageError):
        decode_reply(pack(kind, header, arrays))


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64"])
def test_coefficients_that_are_no_floating_point_numbers_are_refused(dtype: str) -> None:
    with pytest.raises(MessageError):
        decode_reply(pack("update_reply", {"examples": 1, "loss": 0.1}, {"scales": np.ones((3, 2, 2), dtype=dtype)}))


DEEP = pytest.param("[" * 100_000)


@pytest.mark.parametrize("header", ["[]", '"text"', "null", "7", "{", DEEP], ids=["list", "str", "null", "int", "torn", "deep"])
def test_a_header_that_is_no_object_is_refused(header: str) -> None:
    metadata = json.dumps({"__metadata__": {"kind": "update_reply", "header": header}}).encode()
    metadata += b" " * (-len(metadata) % 8)
    with pytest.raises(MessageError):
        decode_reply(struct.pack("<Q", len(metadata)) + metadata)


def test_a_frame_without_our_names_in_it_is_refused() -> None:
    for metadata in (b"{}", b'{"__metadata__":{}}', b'{"__metadata__":{"kind":"failure"}}'):
        padded = metadata + b" " * (-len(metadata) % 8)
        with pytest.raises(MessageError):
            decode_reply(struct.pack("<Q", len(padded)) + padded)


def test_a_round_of_a_subspace_fits_sixteen_kilobytes_a_direction() -> None:
    coefficients = Coefficients.identity(Form(30, rank=8))  # SmolLM2-135M
    sent: list[Request | Reply] = [
        UpdateRequest("0123456789abcdef", 7, 3, 10, coefficients),
        UpdateReply(coefficients, 12, 0.625),
        EvaluateRequest("0123456789abcdef", Role.GATE, coefficients),
    ]
    update, reply, evaluate = (len(encode(message)) for message in sent)
    assert update + evaluate <= 2 * 16 * 1024
    assert update <= 9 * 1024
    assert reply <= 9 * 1024


def test_every_request_has_a_name_for_people() -> None:
    assert set(STEPS) == {request.kind for request in get_args(StepRequest)}
