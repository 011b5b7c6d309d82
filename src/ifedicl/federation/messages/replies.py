"""The replies of a client. All that leaves it is a field here or, masked, in :mod:`ifedicl.federation.messages.secure_sum`."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import ClassVar, Self, get_args

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.framed_sums import FramedSums
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.refinement import Products
from ifedicl.core.vectors import ContextVectors
from ifedicl.federation.messages.frames import Arrays, Header, Message, coefficients_of, exact_fields
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import WireDtype

_WIRE_DTYPES: tuple[str, ...] = get_args(WireDtype)
_TALLY: Mapping[str, type] = {"examples": int, "correct": int, "loss_sum": float}


class FailureCode(StrEnum):
    """Why there is no usable reply. Only codes leave: an error's text could quote a client's text."""

    NO_EXAMPLES = "no_examples"
    """The client holds no example for this request."""
    NO_CONTEXT = "no_context"
    """The client lacks the job or its global vectors, for instance after a restart: send them again."""
    WRONG_MODEL = "wrong_model"
    """The client's model has another fingerprint."""
    BAD_TASK = "bad_task"
    """The task cannot be scored with the client's model."""
    BAD_REQUEST = "bad_request"
    """The request does not fit the job: wrong shapes, or numbers that are not finite or out of bounds."""
    NOT_FINITE = "not_finite"
    """The client's result holds NaN or infinity and does not leave."""
    INTERNAL = "internal"
    """Any other error; the client's own log has the reason."""
    REFUSED = "refused"
    """The owner's policy does not allow this reply."""
    TOO_FEW = "too_few"
    """Too few examples, or too few new ones, stand behind the reply; more examples may help."""
    SPENT = "spent"
    """A limit of the owner's policy, or the privacy budget, is reached."""
    LEDGER = "ledger"
    """The client's ledger cannot be written, or is not the one that the coordinator knows."""
    CHANGED = "changed"
    """Examples of an earlier sum have changed; the difference of two sums could be one example's."""
    OTHER_MODE = "other_mode"
    """The client does not answer in this privacy mode, or requires stricter rules."""
    PROTOCOL = "protocol"
    """A step of the secure sum did not verify or came out of order, or the client's numbers do not fit it."""
    LIGHT = "light"
    """The client has so few of all examples that its change would round to nothing: ask for it in more bits."""
    LATE = "late"
    """The reply came after the deadline (from the engine)."""
    LOST = "lost"
    """The client could not be reached (from the engine)."""
    BAD_REPLY = "bad_reply"
    """The reply was not a message, or did not fit the request (from the coordinator)."""

    @property
    def is_final(self) -> bool:
        """Whether the client would send the same code again, because of its owner's rules or its examples."""
        return self in {FailureCode.REFUSED, FailureCode.TOO_FEW, FailureCode.NO_EXAMPLES, FailureCode.SPENT}


@dataclass(frozen=True)
class JobReply(Message):
    """The client takes the job."""

    kind: ClassVar[str] = "job_reply"

    def to_wire(self) -> tuple[Header, Arrays]:
        return {}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        exact_fields(header)
        return cls()


@dataclass(frozen=True)
class VectorsReply(Message):
    """Means and counts of the new examples.

    Attributes:
        cursor: opaque to the coordinator, which sends it with the next vectors request.
        replaces: True: earlier examples changed, and these vectors replace earlier ones. False: they add to them.
        dtype: the dtype that the client's model computes in.
        wire_dtype: of the means on the wire.
    """

    kind: ClassVar[str] = "vectors_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"means", "counts"})
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
        fields = exact_fields(header, cursor=str, replaces=bool, dtype=str, wire_dtype=str)
        if fields["wire_dtype"] not in _WIRE_DTYPES:
            raise ValueError(f"wire_dtype {fields['wire_dtype']!r}; allowed: {', '.join(_WIRE_DTYPES)}")
        return cls(vectors=ContextVectors.from_wire(arrays["means"], arrays["counts"]), **fields)


@dataclass(frozen=True)
class ContextReply(Message):
    """The vectors are in place."""

    kind: ClassVar[str] = "context_reply"

    def to_wire(self) -> tuple[Header, Arrays]:
        return {}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        exact_fields(header)
        return cls()


@dataclass(frozen=True)
class UpdateReply(Message):
    """The client's coefficients after its local steps, its training examples, and its mean training loss in nats."""

    kind: ClassVar[str] = "update_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"scales", "core"})
    coefficients: Coefficients
    examples: int
    loss: float

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"examples": self.examples, "loss": self.loss}, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**exact_fields(header, examples=int, loss=float), coefficients=coefficients_of(arrays))


@dataclass(frozen=True)
class GradientReply(Message):
    """A gradient sum in float32, so that sums of many clients are exact; zero if there are no examples."""

    kind: ClassVar[str] = "gradient_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"scales", "core"})
    sums: GradientSum

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"examples": self.sums.examples, "loss": self.sums.loss}, dict(self.sums.arrays)

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(GradientSum(coefficients_of(arrays).arrays, **exact_fields(header, examples=int, loss=float)))


@dataclass(frozen=True)
class EvaluateReply(Message):
    """One tally for each candidate of the request: counts and sums, never text."""

    kind: ClassVar[str] = "evaluate_reply"
    tallies: tuple[Tally, ...]

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"tallies": [list(asdict(tally).values()) for tally in self.tallies]}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        rows = exact_fields(header, tallies=list)["tallies"]
        return cls(tuple(Tally(**exact_fields(dict(zip(_TALLY, row, strict=True)), **_TALLY)) for row in rows))


@dataclass(frozen=True)
class StatisticsReply(Message):
    """Sums of features by label, and a sketch of the sums of their products."""

    kind: ClassVar[str] = "statistics_reply"
    array_names: ClassVar[frozenset[str]] = frozenset(
        {"counts", "means", "sizes", "deviations", "steps", "scales", "along", "units"}
    )
    sums: ReadoutSums

    def to_wire(self) -> tuple[Header, Arrays]:
        return {}, self.sums.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        exact_fields(header)
        return cls(ReadoutSums.from_wire(arrays))


@dataclass(frozen=True)
class ProductsReply(Message):
    """Sums of products of features with the directions of the request."""

    kind: ClassVar[str] = "products_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"steps", "scales"})
    sums: Products

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"examples": self.sums.examples}, self.sums.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(Products.from_wire(exact_fields(header, examples=int)["examples"], arrays))


@dataclass(frozen=True)
class NoisyStatisticsReply(Message):
    """What a client adds to the noisy sums of a readout, before its noise; it leaves in secure sums only.

    Attributes:
        sums: over its training examples. Their number is not told.
        clients: 1; in a total, the number of clients, whose public frames are added, too.
    """

    kind: ClassVar[str] = "noisy_statistics_reply"
    array_names: ClassVar[frozenset[str]] = frozenset({"moment", "products", "offset", "scale", "directions"})
    sums: FramedSums
    clients: int = 1

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"clients": self.clients}, {**self.sums.on_wire}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(FramedSums.from_wire(arrays), exact_fields(header, clients=int)["clients"])


@dataclass(frozen=True)
class CompareReply(Message):
    """Counts and sums, never text."""

    kind: ClassVar[str] = "compare_reply"
    comparison: Comparison

    def to_wire(self) -> tuple[Header, Arrays]:
        return asdict(self.comparison), {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(
            header, adapter=dict, zero_shot=dict, squared_gains=float, disagreements=int, truth=list, answers=list
        )
        both = {name: Tally(**exact_fields(fields[name], **_TALLY)) for name in ("adapter", "zero_shot")}
        counts = {name: tuple(map(operator.index, fields[name])) for name in ("truth", "answers")}
        return cls(Comparison(**fields | both | counts))


@dataclass(frozen=True)
class Failure(Message):
    """No usable reply, and why."""

    kind: ClassVar[str] = "failure"
    code: FailureCode

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"code": self.code.value}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(FailureCode(exact_fields(header, code=str)["code"]))
