"""What crosses between coordinator and clients: requests and replies, and their bytes.

A message on the wire is a safetensors frame: raw little-endian arrays behind a JSON header. Everything that leaves a client
is a field of a reply in this file; there is no other door.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout, ReadoutSums
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Role
from ifedicl.errors import MessageError
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import Method
from ifedicl.task import Task

Header: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


class FailureCode(StrEnum):
    """Why there is no usable reply. Codes only: an error's text could carry a client's text to the server."""

    NO_EXAMPLES = "no_examples"
    """The client holds no example for this request."""
    NO_CONTEXT = "no_context"
    """The client does not know the global vectors (it was restarted): send them again."""
    WRONG_MODEL = "wrong_model"
    """The client's model has another fingerprint."""
    BAD_TASK = "bad_task"
    """The task cannot be scored with the client's model."""
    BAD_REQUEST = "bad_request"
    """The request does not fit the client's model: wrong shapes, or numbers that are not finite."""
    NOT_FINITE = "not_finite"
    """The client's own result holds NaN or infinity; it was kept back."""
    INTERNAL = "internal"
    """Anything else; the reason is in the client's own log."""
    LATE = "late"
    """The reply came after the deadline. Said by the engine."""
    LOST = "lost"
    """The client could not be reached. Said by the engine."""
    BAD_REPLY = "bad_reply"
    """The reply was not a message, or did not fit the request. Said by the coordinator."""


@dataclass(frozen=True)
class VectorsRequest:
    """Stage 1: vectorise the examples that are not behind ``cursor`` yet.

    Attributes:
        task: the question.
        method: the settings.
        fingerprint: of the model that everyone must use.
        cursor: what the client's last vectors reply gave; empty at first.
    """

    kind: ClassVar[str] = "vectors"
    task: Task
    method: Method
    fingerprint: str
    cursor: str

    def to_wire(self) -> tuple[Header, Arrays]:
        return _task_header(self), {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**_with_task(_fields(header, **_TASK_FIELDS, cursor=str)))


@dataclass(frozen=True)
class VectorsReply:
    """Sums and counts of the new examples.

    Attributes:
        vectors: means and counts on the wire, in the dtype that the settings ask for.
        cursor: opaque to the coordinator; comes back with the next vectors request.
        replaces: whether these vectors replace earlier ones, because the earlier examples changed, or add to them.
        dtype: the dtype the client's model computes in.
        wire_dtype: of the means on the wire.
    """

    kind: ClassVar[str] = "vectors_reply"
    vectors: ContextVectors
    cursor: str
    replaces: bool
    dtype: str
    wire_dtype: str

    def to_wire(self) -> tuple[Header, Arrays]:
        header = {"cursor": self.cursor, "replaces": self.replaces, "dtype": self.dtype, "wire_dtype": self.wire_dtype}
        return header, {"means": self.vectors.means.astype(self.wire_dtype), "counts": self.vectors.counts}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = _fields(header, cursor=str, replaces=bool, dtype=str, wire_dtype=str)
        return cls(vectors=ContextVectors.from_wire(arrays["means"], arrays["counts"]), **fields)


@dataclass(frozen=True)
class ContextRequest:
    """Stage 2a: the global vectors, and the basis where there is one. A restarted client needs nothing but this to go on.

    Attributes:
        context: what the coefficients weigh.
        context_id: names this task, method and context in the requests that follow.
    """

    kind: ClassVar[str] = "context"
    task: Task
    method: Method
    fingerprint: str
    context: Context
    context_id: str

    def to_wire(self) -> tuple[Header, Arrays]:
        return _task_header(self), self.context.on_wire(self.method.vectors.wire_dtype)

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(context=Context.from_wire(arrays), **_with_task(_fields(header, **_TASK_FIELDS, context_id=str)))


@dataclass(frozen=True)
class ContextReply:
    """The vectors are in place."""

    kind: ClassVar[str] = "context_reply"

    def to_wire(self) -> tuple[Header, Arrays]:
        return {}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls()


@dataclass(frozen=True)
class UpdateRequest:
    """Stage 2b: calibrate these coefficients on the client's own examples.

    Attributes:
        context_id: of the :class:`ContextRequest` that went before.
        round: 0 for the first round of all.
        phase_start: the round at which the present learning-rate schedule began.
        phase_rounds: how many rounds it has.
        coefficients: the global ones.
    """

    kind: ClassVar[str] = "update"
    context_id: str
    round: int
    phase_start: int
    phase_rounds: int
    coefficients: Coefficients

    def to_wire(self) -> tuple[Header, Arrays]:
        header = {name: getattr(self, name) for name in ("context_id", "round", "phase_start", "phase_rounds")}
        return header, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = _fields(header, context_id=str, round=int, phase_start=int, phase_rounds=int)
        return cls(**fields, coefficients=_coefficients(arrays))


@dataclass(frozen=True)
class UpdateReply:
    """The client's coefficients.

    Attributes:
        coefficients: after its local steps.
        examples: how many examples it trains on.
        loss: mean training loss over the local steps, in nats.
    """

    kind: ClassVar[str] = "update_reply"
    coefficients: Coefficients
    examples: int
    loss: float

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"examples": self.examples, "loss": self.loss}, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**_fields(header, examples=int, loss=float), coefficients=_coefficients(arrays))


@dataclass(frozen=True)
class GradientRequest:
    """Stage 2b with exact aggregation: sum the gradient over those of the client's examples that this round draws.

    Attributes:
        context_id: of the :class:`ContextRequest` that went before.
        round: 0 for the first round of all.
        coefficients: the global ones.
    """

    kind: ClassVar[str] = "gradient"
    context_id: str
    round: int
    coefficients: Coefficients

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"context_id": self.context_id, "round": self.round}, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**_fields(header, context_id=str, round=int), coefficients=_coefficients(arrays))


@dataclass(frozen=True)
class GradientReply:
    """A sum over examples, in float32 so that sums of many clients are exact; of no examples it is zero.

    Attributes:
        sums: gradient, number of examples and loss.
    """

    kind: ClassVar[str] = "gradient_reply"
    sums: GradientSum

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"examples": self.sums.examples, "loss": self.sums.loss}, dict(self.sums.arrays)

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(GradientSum(_coefficients(arrays).arrays, **_fields(header, examples=int, loss=float)))


@dataclass(frozen=True)
class EvaluateRequest:
    """Score held-out examples with these coefficients.

    Attributes:
        context_id: of the :class:`ContextRequest` that went before.
        role: which held-out part.
        coefficients: the ones to score; identity is zero-shot.
        readouts: other ways to read the labels off than by the label words, from the same pass.
        temperatures: each readout is tried at each of them.
    """

    kind: ClassVar[str] = "evaluate"
    context_id: str
    role: Role
    coefficients: Coefficients
    readouts: tuple[Readout, ...] = ()
    temperatures: tuple[float, ...] = (1.0,)

    @property
    def candidates(self) -> list[Readout | None]:
        """All that are tried, one answer for each: the label words (None), then readout by readout."""
        return [None, *(readout.sharpened(temperature) for readout in self.readouts for temperature in self.temperatures)]

    def to_wire(self) -> tuple[Header, Arrays]:
        readouts = {"readouts": np.stack([readout.weights for readout in self.readouts])} if self.readouts else {}
        header = {"context_id": self.context_id, "role": self.role.value, "temperatures": list(self.temperatures)}
        return header, self.coefficients.on_wire | readouts

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = _fields(header, context_id=str, role=str, temperatures=list)
        return cls(
            context_id=fields["context_id"],
            role=Role(fields["role"]),
            coefficients=_coefficients({name: array for name, array in arrays.items() if name != "readouts"}),
            readouts=tuple(map(Readout, arrays.get("readouts", ()))),
            temperatures=tuple(map(float, fields["temperatures"])),
        )


@dataclass(frozen=True)
class EvaluateReply:
    """Counts and sums, never text.

    Attributes:
        tallies: one for each candidate of the request.
    """

    kind: ClassVar[str] = "evaluate_reply"
    tallies: tuple[Tally, ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"tallies": [list(asdict(tally).values()) for tally in self.tallies]}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        rows = _fields(header, tallies=list)["tallies"]
        return cls(tuple(Tally(**_typed(dict(zip(_TALLY, row, strict=True)), _TALLY)) for row in rows))


@dataclass(frozen=True)
class CompareRequest:
    """Compare an adapter with the raw model on the gate examples.

    Attributes:
        context_id: of the :class:`ContextRequest` that went before.
        coefficients: the adapter's.
        readout: the adapter's; None: the label words.
    """

    kind: ClassVar[str] = "compare"
    context_id: str
    coefficients: Coefficients
    readout: Readout | None

    def to_wire(self) -> tuple[Header, Arrays]:
        readout = {} if self.readout is None else {"readout": self.readout.weights}
        return {"context_id": self.context_id}, self.coefficients.on_wire | readout

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        readout = Readout(arrays["readout"]) if "readout" in arrays else None
        coefficients = _coefficients({name: array for name, array in arrays.items() if name != "readout"})
        return cls(**_fields(header, context_id=str), coefficients=coefficients, readout=readout)


@dataclass(frozen=True)
class CompareReply:
    """Counts and sums, never text."""

    kind: ClassVar[str] = "compare_reply"
    comparison: Comparison

    def to_wire(self) -> tuple[Header, Arrays]:
        return asdict(self.comparison), {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = _fields(header, adapter=dict, zero_shot=dict, squared_gains=float, disagreements=int, truth=list, answers=list)
        both = {name: Tally(**_typed(fields[name], _TALLY)) for name in ("adapter", "zero_shot")}
        counts = {name: tuple(map(operator.index, fields[name])) for name in ("truth", "answers")}
        return cls(Comparison(**fields | both | counts))


@dataclass(frozen=True)
class StatisticsRequest:
    """Sum what a readout is made of over the client's training examples.

    Attributes:
        context_id: of the :class:`ContextRequest` that went before.
        coefficients: of the adapted model.
    """

    kind: ClassVar[str] = "statistics"
    context_id: str
    coefficients: Coefficients

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"context_id": self.context_id}, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**_fields(header, context_id=str), coefficients=_coefficients(arrays))


@dataclass(frozen=True)
class StatisticsReply:
    """Sums of products of features and labels; their number of examples."""

    kind: ClassVar[str] = "statistics_reply"
    sums: ReadoutSums

    def to_wire(self) -> tuple[Header, Arrays]:
        arrays = {"triangle": self.sums.triangle, "moment": self.sums.moment}
        return {"examples": self.sums.examples}, {name: array.astype(np.float32) for name, array in arrays.items()}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = _fields(header, examples=int)
        return cls(ReadoutSums.from_triangle(arrays["triangle"], arrays["moment"], fields["examples"]))


@dataclass(frozen=True)
class Failure:
    """No usable reply, and why."""

    kind: ClassVar[str] = "failure"
    code: FailureCode

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"code": self.code.value}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(FailureCode(_fields(header, code=str)["code"]))


Request: TypeAlias = (
    VectorsRequest | ContextRequest | UpdateRequest | GradientRequest | EvaluateRequest | StatisticsRequest | CompareRequest
)
Reply: TypeAlias = (
    VectorsReply | ContextReply | UpdateReply | GradientReply | EvaluateReply | StatisticsReply | CompareReply | Failure
)

_REQUESTS: Mapping[str, type[Request]] = {message.kind: message for message in get_args(Request)}
_REPLIES: Mapping[str, type[Reply]] = {message.kind: message for message in get_args(Reply)}
_AnyMessage = TypeVar("_AnyMessage", Request, Reply)


def encode(message: Request | Reply) -> bytes:
    """The message as it crosses the network."""
    header, arrays = message.to_wire()
    return pack(message.kind, header, arrays)


def decode_request(data: bytes) -> Request:
    """The request that :func:`encode` made.

    Raises:
        MessageError: torn, not a request, or with fields that do not fit it.
    """
    return _decoded(data, _REQUESTS)


def decode_reply(data: bytes) -> Reply:
    """The reply that :func:`encode` made.

    Raises:
        MessageError: torn, not a reply, or with fields that do not fit it.
    """
    return _decoded(data, _REPLIES)


def _decoded(data: bytes, kinds: Mapping[str, type[_AnyMessage]]) -> _AnyMessage:
    kind, header, arrays = unpack(data)
    if kind not in kinds:
        raise MessageError(f"a message of kind {kind!r}; allowed: {', '.join(kinds)}. Both sides need the same ifedicl version")
    try:
        return kinds[kind].from_wire(header, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"a {kind} message whose fields do not fit: {error}") from error


def pack(kind: str, header: Header, arrays: Arrays) -> bytes:
    """Header and arrays as one safetensors frame."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save_arrays(contiguous, metadata={"message": json.dumps([kind, header], separators=(",", ":"))})


def unpack(data: bytes) -> tuple[str, Header, Arrays]:
    """Kind, header and arrays of :func:`pack`.

    Raises:
        MessageError: not such a frame, or a torn one.
    """
    try:
        arrays: Arrays = load_arrays(data)
        (length,) = struct.unpack_from("<Q", data)
        kind, header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["message"])
        if not isinstance(kind, str) or not isinstance(header, dict):
            raise TypeError(f"kind {type(kind).__name__}, header {type(header).__name__}")
        return kind, header, arrays
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MessageError(f"{len(data)} bytes that are not a whole message: {error}") from error


def _task_header(request: VectorsRequest | ContextRequest) -> Header:
    header: Header = {
        "task": request.task.model_dump(mode="json"),
        "method": request.method.model_dump(mode="json"),
        "fingerprint": request.fingerprint,
    }
    extra = {"cursor": request.cursor} if isinstance(request, VectorsRequest) else {"context_id": request.context_id}
    return header | extra


_TALLY: Mapping[str, type] = {"examples": int, "correct": int, "loss_sum": float}
_TASK_FIELDS: Mapping[str, type] = {"task": dict, "method": dict, "fingerprint": str}


def _with_task(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"task": Task.model_validate(fields["task"]), "method": Method.model_validate(fields["method"])}


def _coefficients(arrays: Arrays) -> Coefficients:
    """Of exactly the arrays that there may be.

    Raises:
        KeyError, TypeError, ValueError: they are not.
    """
    coefficients = Coefficients.from_wire(arrays)
    if extra := set(arrays) - set(coefficients.arrays):
        raise TypeError(f"arrays {', '.join(sorted(extra))}")
    return coefficients


def _fields(header: Header, **types: type) -> dict[str, Any]:
    """The fields of a header, exactly these and each of exactly its type: the other side may send anything.

    Raises:
        TypeError: one is missing, of another type, or too many.
    """
    return _typed(header, types)


def _typed(header: Header, types: Mapping[str, type]) -> dict[str, Any]:
    if set(header) != set(types):
        raise TypeError(f"fields {', '.join(sorted(header))}; allowed: {', '.join(sorted(types))}")
    for name, kind in types.items():
        if type(header[name]) is not kind:
            raise TypeError(f"{name} is {type(header[name]).__name__}, not {kind.__name__}")
    return {name: header[name] for name in types}
