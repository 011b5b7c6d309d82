"""Damaged, forged and outdated messages are refused with a clear error."""

from __future__ import annotations

import json
import struct
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.errors import FederationError, MessageError
from ifedicl.federation.messages import (
    EvaluateRequest,
    JobRequest,
    Reply,
    Request,
    StatisticsReply,
    VectorsReply,
    decode_reply,
    decode_request,
    encode,
    frames,
    pack,
    unpack,
)
from tests.support.messages import JOB, LAYERS, MEANS, READOUT, READOUT_SUMS, REPLIES, REQUESTS, SCALES, SUMS, kind_of

BY_KIND = {reply.kind: reply for reply in REPLIES}
REPEATABLE = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize("request_", REQUESTS, ids=kind_of)
def test_a_request_cut_anywhere_is_refused(request_: Request) -> None:
    data = encode(request_)

    @REPEATABLE
    @given(st.integers(0, len(data) - 1))
    def check(length: int) -> None:
        with pytest.raises(MessageError):
            decode_request(data[:length])

    check()


@pytest.mark.parametrize("reply", REPLIES[:6], ids=kind_of)
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
    request = EvaluateRequest("c", Coefficients.identity(Form(LAYERS)), (READOUT,), (1.0,))
    assert isinstance(decode_request(forged(request, temperatures=[1.0] * 128)), EvaluateRequest)
    with pytest.raises(MessageError, match="more than 128"):
        decode_request(forged(request, temperatures=[1.0] * 129))
    with pytest.raises(MessageError, match="more than 128"):
        decode_request(forged(request, temperatures=[1.0] * 16, shares=[0.0] * 9))


@REPEATABLE
@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode_reply(data)


@pytest.mark.parametrize("reply", REPLIES[:6], ids=kind_of)
def test_a_reply_with_a_changed_byte_is_refused_or_decoded_but_nothing_else(reply: Reply) -> None:
    data = encode(reply)

    @REPEATABLE
    @given(st.integers(0, len(data) - 1), st.integers(1, 255))
    def check(place: int, change: int) -> None:
        damaged = bytearray(data)
        damaged[place] ^= change
        try:
            received = decode_reply(bytes(damaged))
        except MessageError:
            return
        assert isinstance(received, get_args(Reply))

    check()


@pytest.mark.parametrize("reply", REPLIES[:6], ids=kind_of)
def test_a_reply_is_not_accepted_as_a_request(reply: Reply) -> None:
    with pytest.raises(MessageError, match=r"kind: .*allowed: job, vectors, context, update, gradient, evaluate"):
        decode_request(encode(reply))


@pytest.mark.parametrize("request_", REQUESTS, ids=kind_of)
def test_a_request_is_not_accepted_as_a_reply(request_: Request) -> None:
    with pytest.raises(MessageError, match=r"kind: .*allowed: job_reply, vectors_reply, context_reply"):
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


@pytest.mark.parametrize("reply", [BY_KIND[kind] for kind in ("vectors_reply", "update_reply", "evaluate_reply")], ids=kind_of)
def test_a_reply_without_one_of_its_fields_is_refused(reply: Reply) -> None:
    header, arrays = reply.to_wire()
    for name in header:
        with pytest.raises(MessageError, match=rf"{reply.kind} message"):
            decode_reply(pack(reply.kind, {key: value for key, value in header.items() if key != name}, arrays))
    for name in arrays:
        with pytest.raises(MessageError, match=rf"{reply.kind} message"):
            decode_reply(pack(reply.kind, header, {key: value for key, value in arrays.items() if key != name}))


@pytest.mark.parametrize("reply", [BY_KIND[kind] for kind in ("job_reply", "update_reply", "gradient_reply")], ids=kind_of)
def test_a_reply_with_a_field_too_many_is_refused(reply: Reply) -> None:
    header, arrays = reply.to_wire()
    with pytest.raises(MessageError):
        decode_reply(pack(reply.kind, {**header, "text": "a row of the data"}, arrays))


@pytest.mark.parametrize("message", [*REQUESTS, *REPLIES[:8]], ids=kind_of)
def test_an_array_that_a_kind_does_not_have_is_refused_before_any_is_decoded(
    message: Request | Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(data: bytes) -> Any:
        raise AssertionError("its arrays are decoded")

    header, arrays = message.to_wire()
    data = pack(message.kind, header, {**arrays, "rows": np.zeros(1000, dtype=np.float32)})
    monkeypatch.setattr(frames, "load_arrays", decoded)
    with pytest.raises(MessageError, match=f"1 arrays that a {message.kind} message does not have"):
        (decode_request if isinstance(message, get_args(Request)) else decode_reply)(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"text": "one more field"},
        {"limits": {"rounds": -1, "figures": 1, "sums": 1, "contexts": 1}},
        {"model": {"fingerprint": "f" * 63, "layers": 3, "width": 8}},
        {"model": {"fingerprint": "f" * 64, "layers": 0, "width": 8}},
        {"task": {"name": "place"}},
        {"method": {"calibration": {"learning_rate": 2.0}}},
        {"method": {"calibration": {"learning_rate": 1.0, "weight_decay": 0.11}}},
        {"method": {"calibration": {"local_steps": 10_001}}},
        {"method": {"calibration": {"batch_size": 100_001}}},
        {"method": {"rounds": {"rounds": 100_001}}},
    ],
    ids=str,
)
def test_a_job_whose_manifest_is_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    assert decode_request(encode(JobRequest(JOB))) == JobRequest(JOB)
    with pytest.raises(MessageError, match="job message"):
        decode_request(pack("job", {"manifest": JOB.to_json() | changes}, {}))


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
