"""The requests of a coordinator: a job's name and numbers. What the numbers mean is in the job's manifest.

``context_id`` names the global vectors, and with them the job (:func:`ifedicl.federation.manifest.context_id`).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ifedicl.core.blend import mixes
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout, halves
from ifedicl.core.refinement import Refinement
from ifedicl.core.subspace import Context
from ifedicl.data import Role
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages.frames import Arrays, Header, RequestMessage, coefficients_of, exact_fields, weights_of

_MOST_CANDIDATES = 128  # each is a copy of the readout; a run tries a hundred
_COEFFICIENTS = frozenset({"scales", "core"})


@dataclass(frozen=True)
class JobRequest(RequestMessage):
    """Brings the job's manifest. A client takes it if its owner approved it or the owner's rules allow it."""

    kind: ClassVar[str] = "job"
    carries_head: ClassVar[bool] = False  # a new coordinator does not know it yet; the reply brings it
    manifest: Manifest

    @property
    def job(self) -> str:
        """The job's digest."""
        return self.manifest.digest

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"manifest": self.manifest.to_json()}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(Manifest.from_wire(exact_fields(header, manifest=dict)["manifest"]))


@dataclass(frozen=True)
class VectorsRequest(RequestMessage):
    """Stage 1: vectorise the examples that ``cursor`` does not cover.

    Attributes:
        job: its digest.
        cursor: from the client's last vectors reply; empty at first.
    """

    kind: ClassVar[str] = "vectors"
    role: ClassVar[Role | None] = Role.TRAIN
    job: str
    cursor: str

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"job": self.job, "cursor": self.cursor}, {}

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**exact_fields(header, job=str, cursor=str))


@dataclass(frozen=True)
class ContextRequest(RequestMessage):
    """Stage 2a: the global vectors and, with a subspace, the basis. They are sent in ``wire_dtype``."""

    kind: ClassVar[str] = "context"
    carries_head: ClassVar[bool] = False
    array_names: ClassVar[frozenset[str]] = frozenset({"vectors", "basis"})
    job: str
    context: Context
    wire_dtype: str

    @property
    def context_id(self) -> str:
        """The name of these vectors in this job."""
        return context_id(self.job, self.context)

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"job": self.job, "first_layer": self.context.first_layer}, self.context.on_wire(self.wire_dtype)

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, job=str, first_layer=int)
        if len(dtypes := {str(array.dtype) for array in arrays.values()}) != 1:
            raise TypeError(f"arrays of dtypes {', '.join(sorted(dtypes)) or 'none'}")
        return cls(fields["job"], Context.from_wire(arrays, fields["first_layer"]), dtypes.pop())


@dataclass(frozen=True)
class UpdateRequest(RequestMessage):
    """Stage 2b: calibrate these coefficients on the client's own examples.

    Attributes:
        round: completed rounds.
        phase_start: the round at which the present learning-rate schedule began.
        phase_rounds: its number of rounds.
        coefficients: the global ones.
        weight_bits: of a secure sum: the clients have at most 2 to the power of it examples, all together; 0: it says nothing.
    """

    kind: ClassVar[str] = "update"
    role: ClassVar[Role | None] = Role.TRAIN
    array_names: ClassVar[frozenset[str]] = _COEFFICIENTS
    context_id: str
    round: int
    phase_start: int
    phase_rounds: int
    coefficients: Coefficients
    weight_bits: int = 0

    def to_wire(self) -> tuple[Header, Arrays]:
        names = ("context_id", "round", "phase_start", "phase_rounds", "weight_bits")
        return {name: getattr(self, name) for name in names}, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, context_id=str, round=int, phase_start=int, phase_rounds=int, weight_bits=int)
        return cls(**fields, coefficients=coefficients_of(arrays))


@dataclass(frozen=True)
class GradientRequest(RequestMessage):
    """Stage 2b with exact aggregation: sum the gradient over the client's examples that this round draws."""

    kind: ClassVar[str] = "gradient"
    role: ClassVar[Role | None] = Role.TRAIN
    array_names: ClassVar[frozenset[str]] = _COEFFICIENTS
    context_id: str
    round: int
    coefficients: Coefficients

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"context_id": self.context_id, "round": self.round}, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**exact_fields(header, context_id=str, round=int), coefficients=coefficients_of(arrays))


@dataclass(frozen=True)
class EvaluateRequest(RequestMessage):
    """Score the client's selection examples with these coefficients.

    Attributes:
        coefficients: the ones to score; identity is zero-shot.
        readouts: score these too, from the same pass; they travel as :func:`~ifedicl.core.readout.halves`.
        temperatures: score each readout at each of them.
        shares: of the label words, each added to each readout at each temperature.
    """

    kind: ClassVar[str] = "evaluate"
    role: ClassVar[Role | None] = Role.SELECTION
    array_names: ClassVar[frozenset[str]] = _COEFFICIENTS | {"readouts", "powers"}
    context_id: str
    coefficients: Coefficients
    readouts: tuple[Readout, ...] = ()
    temperatures: tuple[float, ...] = (1.0,)
    shares: tuple[float, ...] = (0.0,)

    @property
    def candidates(self) -> list[Readout | None]:
        """The readouts to score, one tally each: the label words (None), then each readout in each mix with them."""
        return [None, *mixes(self.readouts, self.temperatures, self.shares)]

    def to_wire(self) -> tuple[Header, Arrays]:
        readouts: Arrays = {}
        if self.readouts:
            readouts["readouts"], readouts["powers"] = halves(np.stack([readout.weights for readout in self.readouts]))
        header = {
            "context_id": self.context_id,
            "temperatures": list(self.temperatures),
            "shares": list(self.shares),
            "pooled_layers": [list(readout.pooled_layers) for readout in self.readouts],
        }
        return header, self.coefficients.on_wire | readouts

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, context_id=str, temperatures=list, shares=list, pooled_layers=list)
        if len(fields["pooled_layers"]) * len(fields["temperatures"]) * len(fields["shares"]) > _MOST_CANDIDATES:
            raise ValueError(f"more than {_MOST_CANDIDATES} readouts, temperatures and shares to try")
        own = {name: array for name, array in arrays.items() if name in ("readouts", "powers")}
        return cls(
            context_id=fields["context_id"],
            coefficients=coefficients_of({name: array for name, array in arrays.items() if name not in own}),
            readouts=tuple(map(Readout, weights_of(own), map(_layers, fields["pooled_layers"]))),
            temperatures=tuple(map(float, fields["temperatures"])),
            shares=tuple(map(float, fields["shares"])),
        )


@dataclass(frozen=True)
class _OfTrainingExamples(RequestMessage):
    """Asks for sums over the client's training examples, in the model with these coefficients."""

    role: ClassVar[Role | None] = Role.TRAIN
    array_names: ClassVar[frozenset[str]] = _COEFFICIENTS
    context_id: str
    coefficients: Coefficients

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"context_id": self.context_id}, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**exact_fields(header, context_id=str), coefficients=coefficients_of(arrays))


@dataclass(frozen=True)
class StatisticsRequest(_OfTrainingExamples):
    """Sum the statistics of a readout over the client's training examples, in the model with these coefficients.

    Attributes:
        weight_bits: as in an :class:`UpdateRequest`.
    """

    kind: ClassVar[str] = "statistics"
    weight_bits: int = 0

    def to_wire(self) -> tuple[Header, Arrays]:
        header, arrays = super().to_wire()
        return header | {"weight_bits": self.weight_bits}, arrays

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**exact_fields(header, context_id=str, weight_bits=int), coefficients=coefficients_of(arrays))


@dataclass(frozen=True)
class ProductsRequest(RequestMessage):
    """Sum products of the features of the client's training examples with a few directions; refines the readout's sums.

    Attributes:
        coefficients: those of the statistics.
        refinement: centre and directions, in the features' units.
        weight_bits: as in an :class:`UpdateRequest`.
    """

    kind: ClassVar[str] = "products"
    role: ClassVar[Role | None] = Role.TRAIN
    array_names: ClassVar[frozenset[str]] = _COEFFICIENTS | {"centre", "directions"}
    context_id: str
    coefficients: Coefficients
    refinement: Refinement
    weight_bits: int = 0

    def to_wire(self) -> tuple[Header, Arrays]:
        asked = {"centre": self.refinement.centre, "directions": self.refinement.directions}
        return {"context_id": self.context_id, "weight_bits": self.weight_bits}, self.coefficients.on_wire | asked

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        asked = {name: array for name, array in arrays.items() if name in ("centre", "directions")}
        coefficients = coefficients_of({name: array for name, array in arrays.items() if name not in asked})
        fields = exact_fields(header, context_id=str, weight_bits=int)
        return cls(fields["context_id"], coefficients, Refinement.from_wire(asked), fields["weight_bits"])


@dataclass(frozen=True)
class NoisyStatisticsRequest(_OfTrainingExamples):
    """As :class:`StatisticsRequest`, in a public frame and with noise."""

    kind: ClassVar[str] = "noisy_statistics"


@dataclass(frozen=True)
class CompareRequest(RequestMessage):
    """Compare an adapter with the raw model on the gate examples.

    Attributes:
        coefficients: of the adapter.
        readout: of the adapter; None: the label words.
    """

    kind: ClassVar[str] = "compare"
    role: ClassVar[Role | None] = Role.GATE
    array_names: ClassVar[frozenset[str]] = _COEFFICIENTS | {"readout"}
    context_id: str
    coefficients: Coefficients
    readout: Readout | None

    @property
    def readouts(self) -> tuple[Readout, ...]:
        """The readout, as in an :class:`EvaluateRequest`."""
        return () if self.readout is None else (self.readout,)

    def to_wire(self) -> tuple[Header, Arrays]:
        readout = {} if self.readout is None else {"readout": self.readout.weights}
        layers = [] if self.readout is None else list(self.readout.pooled_layers)
        return {"context_id": self.context_id, "pooled_layers": layers}, self.coefficients.on_wire | readout

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, context_id=str, pooled_layers=list)
        readout = Readout(arrays["readout"], _layers(fields["pooled_layers"])) if "readout" in arrays else None
        coefficients = coefficients_of({name: array for name, array in arrays.items() if name != "readout"})
        return cls(fields["context_id"], coefficients, readout)


def _layers(value: Any) -> tuple[int, ...]:
    return tuple(map(operator.index, value))
