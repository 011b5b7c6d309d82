"""The requests of a coordinator. ``context_id`` names the :class:`ContextRequest` that came before."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.data import Role
from ifedicl.federation.messages.frames import Arrays, Header, coefficients_of, exact_fields
from ifedicl.settings import Method
from ifedicl.task import Task

_MOST_CANDIDATES = 64  # each is a copy of the readout; a run tries twelve
_TASK_FIELDS: Mapping[str, type] = {"task": dict, "method": dict, "fingerprint": str}


@dataclass(frozen=True)
class VectorsRequest:
    """Stage 1: vectorise the examples that ``cursor`` does not cover.

    Attributes:
        task: the question.
        method: the settings.
        fingerprint: of the model that all clients must use.
        cursor: from the client's last vectors reply; empty at first.
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
        return cls(**_with_task(exact_fields(header, **_TASK_FIELDS, cursor=str)))


@dataclass(frozen=True)
class ContextRequest:
    """Stage 2a: the global vectors and, with a subspace, the basis. A restarted client needs only this request to go on."""

    kind: ClassVar[str] = "context"
    task: Task
    method: Method
    fingerprint: str
    context: Context
    context_id: str

    def to_wire(self) -> tuple[Header, Arrays]:
        header = _task_header(self) | {"first_layer": self.context.first_layer}
        return header, self.context.on_wire(self.method.vectors.wire_dtype)

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, **_TASK_FIELDS, context_id=str, first_layer=int)
        context = Context.from_wire(arrays, fields.pop("first_layer"))
        return cls(context=context, **_with_task(fields))


@dataclass(frozen=True)
class UpdateRequest:
    """Stage 2b: calibrate these coefficients on the client's own examples.

    Attributes:
        round: completed rounds.
        phase_start: the round at which the present learning-rate schedule began.
        phase_rounds: its number of rounds.
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
        fields = exact_fields(header, context_id=str, round=int, phase_start=int, phase_rounds=int)
        return cls(**fields, coefficients=coefficients_of(arrays))


@dataclass(frozen=True)
class GradientRequest:
    """Stage 2b with exact aggregation: sum the gradient over the client's examples that this round draws."""

    kind: ClassVar[str] = "gradient"
    context_id: str
    round: int
    coefficients: Coefficients

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"context_id": self.context_id, "round": self.round}, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**exact_fields(header, context_id=str, round=int), coefficients=coefficients_of(arrays))


@dataclass(frozen=True)
class EvaluateRequest:
    """Score held-out examples with these coefficients.

    Attributes:
        role: the held-out part.
        coefficients: the ones to score; identity is zero-shot.
        readouts: score these too, from the same pass.
        temperatures: score each readout at each of them.
    """

    kind: ClassVar[str] = "evaluate"
    context_id: str
    role: Role
    coefficients: Coefficients
    readouts: tuple[Readout, ...] = ()
    temperatures: tuple[float, ...] = (1.0,)

    @property
    def candidates(self) -> list[Readout | None]:
        """The readouts to score, one tally each: the label words (None), then each readout at each temperature."""
        return [None, *(readout.sharpened(temperature) for readout in self.readouts for temperature in self.temperatures)]

    def to_wire(self) -> tuple[Header, Arrays]:
        readouts = {"readouts": np.stack([readout.weights for readout in self.readouts])} if self.readouts else {}
        header = {
            "context_id": self.context_id,
            "role": self.role.value,
            "temperatures": list(self.temperatures),
            "pooled_layers": [readout.pooled_layer for readout in self.readouts],
        }
        return header, self.coefficients.on_wire | readouts

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, context_id=str, role=str, temperatures=list, pooled_layers=list)
        if len(fields["pooled_layers"]) * len(fields["temperatures"]) > _MOST_CANDIDATES:
            raise ValueError(f"more than {_MOST_CANDIDATES} readouts and temperatures to try")
        return cls(
            context_id=fields["context_id"],
            role=Role(fields["role"]),
            coefficients=coefficients_of({name: array for name, array in arrays.items() if name != "readouts"}),
            readouts=tuple(map(Readout, arrays.get("readouts", ()), map(_layer, fields["pooled_layers"]))),
            temperatures=tuple(map(float, fields["temperatures"])),
        )


@dataclass(frozen=True)
class StatisticsRequest:
    """Sum the statistics of a readout over the client's training examples, in the model with these coefficients."""

    kind: ClassVar[str] = "statistics"
    context_id: str
    coefficients: Coefficients

    def to_wire(self) -> tuple[Header, Arrays]:
        return {"context_id": self.context_id}, self.coefficients.on_wire

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        return cls(**exact_fields(header, context_id=str), coefficients=coefficients_of(arrays))


@dataclass(frozen=True)
class CompareRequest:
    """Compare an adapter with the raw model on the gate examples.

    Attributes:
        coefficients: of the adapter.
        readout: of the adapter; None: the label words.
    """

    kind: ClassVar[str] = "compare"
    context_id: str
    coefficients: Coefficients
    readout: Readout | None

    @property
    def readouts(self) -> tuple[Readout, ...]:
        """The readout, as in an :class:`EvaluateRequest`."""
        return () if self.readout is None else (self.readout,)

    def to_wire(self) -> tuple[Header, Arrays]:
        readout = {} if self.readout is None else {"readout": self.readout.weights}
        layer = None if self.readout is None else self.readout.pooled_layer
        return {"context_id": self.context_id, "pooled_layers": [layer]}, self.coefficients.on_wire | readout

    @classmethod
    def from_wire(cls, header: Header, arrays: Arrays) -> Self:
        fields = exact_fields(header, context_id=str, pooled_layers=list)
        (layer,) = map(_layer, fields["pooled_layers"])
        readout = Readout(arrays["readout"], layer) if "readout" in arrays else None
        coefficients = coefficients_of({name: array for name, array in arrays.items() if name != "readout"})
        return cls(fields["context_id"], coefficients, readout)


def _task_header(request: VectorsRequest | ContextRequest) -> Header:
    header: Header = {
        "task": request.task.model_dump(mode="json"),
        "method": request.method.model_dump(mode="json"),
        "fingerprint": request.fingerprint,
    }
    extra = {"cursor": request.cursor} if isinstance(request, VectorsRequest) else {"context_id": request.context_id}
    return header | extra


def _with_task(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"task": Task.model_validate(fields["task"]), "method": Method.model_validate(fields["method"])}


def _layer(value: Any) -> int | None:
    return None if value is None else operator.index(value)
