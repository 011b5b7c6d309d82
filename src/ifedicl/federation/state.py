"""The coordinator's memory after each round, in one file that is whole or absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ifedicl import files
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.server_optimizer import Moments
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.errors import ConfigError, Fault, MessageError, StorageError
from ifedicl.federation.messages import Arrays, pack, unpack
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Tally
from ifedicl.settings import TOGETHER

_KIND = "checkpoint"
_HEADER = (
    "run",
    "round",
    "phase_start",
    "phase_rounds",
    "best_round",
    "stale",
    "vectors_due",
    "cursors",
    "dtypes",
    "readout_round",
)
"""Fields of a state that are JSON as they are."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one step cost one client.

    Attributes:
        client: its name.
        step: kind of the request.
        round: completed rounds when it was sent.
        bytes_down: to the client.
        bytes_up: from the client.
        seconds: from request to reply.
        failure: code, where there was no usable reply.
        carrier_bytes: what the carrier added to both messages, where it can tell.
    """

    client: str
    step: str
    round: int
    bytes_down: int
    bytes_up: int
    seconds: float
    failure: str | None = None
    carrier_bytes: int = 0


@dataclass(frozen=True)
class RoundRecord:
    """What is known of one round.

    Attributes:
        round: number of completed rounds; 0 is the state before the first.
        clients: who gave a usable update.
        train_loss: mean over those clients, weighted as their coefficients are; None for round 0.
        by_client: on each client's selection examples; empty where this round was not evaluated.
    """

    round: int
    clients: tuple[str, ...]
    train_loss: float | None
    by_client: Mapping[str, Tally] = field(default_factory=dict)

    @property
    def held_out(self) -> Tally | None:
        """On all clients' selection examples; None where this round was not evaluated."""
        return sum(self.by_client.values(), Tally()) if self.by_client else None

    @property
    def worst(self) -> str | None:
        """The client whose selection examples fare worst by accuracy, equal ones by loss; None where no single one is known."""
        single = [name for name in self.by_client if name != TOGETHER]
        return min(single, key=lambda name: (self.by_client[name].accuracy, -self.by_client[name].loss), default=None)


@dataclass(frozen=True)
class State:
    """All that a coordinator needs to go on as if it had never stopped.

    Attributes:
        run: digest of task, method and model: a checkpoint belongs to one run.
        round: completed rounds.
        phase_start: the round at which the present schedule began.
        phase_rounds: how many rounds it has.
        coefficients: after ``round`` rounds.
        best_round: the round chosen so far; None before the first evaluation.
        best: its coefficients.
        stale: evaluations since the best one.
        vectors_due: whether stage 1 is still to be done for the present phase.
        client_vectors: means and counts of each client, or of all together where their sum is all that is needed.
        cursors: what each client's vectors reply gave.
        dtypes: what each client's model computes in.
        heads: of each client's ledger, as its last reply told; of those that keep one.
        context: global vectors and basis; None before stage 2a.
        moments: of the server's optimizer; None where it only averages.
        readout: of the best round; None before it is made, and where the label words do better.
        readout_round: the best round when it was made.
        zero_shot: the raw model on the selection examples.
        history: one record a round.
        traffic: every exchange.
    """

    run: str
    round: int
    phase_start: int
    phase_rounds: int
    coefficients: Coefficients
    best: Coefficients
    best_round: int | None = None
    stale: int = 0
    vectors_due: bool = True
    client_vectors: Mapping[str, ContextVectors] = field(default_factory=dict)
    cursors: Mapping[str, str] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)
    context: Context | None = None
    moments: Moments | None = None
    readout: Readout | None = None
    readout_round: int | None = None
    zero_shot: Tally | None = None
    history: tuple[RoundRecord, ...] = ()
    traffic: tuple[Traffic, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether the present schedule has run out."""
        return self.round >= self.phase_start + self.phase_rounds


class Memory:
    """The state of a run, and the file that keeps it."""

    def __init__(self, state: State, path: Path | None) -> None:
        """Begin with ``state``; nothing is written yet. Without a path nothing ever is."""
        self.state = state
        self._path = path

    @property
    def heads_file(self) -> Path | None:
        """Where the heads of the clients' ledgers are written down, beside the checkpoint."""
        return self._path and self._path.with_name("heads.jsonl")

    def note(self, **changes: Any) -> None:
        """Change these fields; they are written with the next :meth:`keep`."""
        self.state = replace(self.state, **changes)

    def keep(self, **changes: Any) -> None:
        """Change these fields and write the checkpoint.

        Raises:
            StorageError: the disk refuses; the checkpoint before it is untouched.
        """
        self.note(**changes)
        if self._path is not None:
            save(self.state, self._path)

    def recall(self) -> bool:
        """Go on from the file, where there is one of this run.

        Raises:
            StorageError: the file is torn or of another format.
            ConfigError: it is of another run.
        """
        stored = load(self._path) if self._path else None
        if stored is None:
            return False
        if stored.run != self.state.run:
            fault = Fault(
                "checkpoint",
                f"one of run {stored.run[:12]}",
                f"run {self.state.run[:12]}",
                "Task, method or model were changed since. Restore them, or start again in another folder.",
            )
            raise ConfigError(str(self._path), [fault])
        if stored.coefficients.form != self.state.coefficients.form:
            raise StorageError(
                f"{self._path} holds {stored.coefficients.form.layers} layers; since an ifedicl newer than its own a run holds "
                f"the {self.state.coefficients.form.layers} that are injected. Start again in another folder, or go on with "
                "the ifedicl that wrote it"
            )
        self.state = stored
        return True


def save(state: State, path: Path) -> None:
    """Write ``state`` atomically.

    Raises:
        StorageError: the disk refuses; the checkpoint before it is untouched.
    """
    header = {name: getattr(state, name) for name in _HEADER}
    header["heads"] = {name: asdict(head) for name, head in state.heads.items()}
    header["zero_shot"] = state.zero_shot and asdict(state.zero_shot)
    header["first_layer"] = state.context.first_layer if state.context else 0
    header["moments"] = state.moments and state.moments.steps
    header["pooled_layer"] = state.readout and state.readout.pooled_layer
    header["history"] = [asdict(record) for record in state.history]
    header["traffic"] = [asdict(item) for item in state.traffic]
    folders: dict[str, Mapping[str, npt.NDArray[Any]]] = {
        "coefficients": state.coefficients.arrays,
        "best": state.best.arrays,
        "context": state.context.arrays if state.context else {},
        "first": state.moments.first if state.moments else {},
        "second": state.moments.second if state.moments else {},
        "means": {name: vectors.means for name, vectors in state.client_vectors.items()},
        "counts": {name: vectors.counts for name, vectors in state.client_vectors.items()},
    }
    arrays: Arrays = {f"{folder}/{name}": array for folder, own in folders.items() for name, array in own.items()}
    if state.readout is not None:
        arrays["readout"] = state.readout.weights
    files.write_bytes(path, pack(_KIND, header, arrays), private=True)  # it holds single clients' sums


def load(path: Path) -> State | None:
    """The state in ``path``, or None where there is none.

    Raises:
        StorageError: the file is torn or of another format.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    try:
        kind, header, arrays, _ = unpack(data)
        if kind != _KIND:
            raise ValueError(f"a {kind} frame")
        return _state(header, arrays)
    except (MessageError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path} is not a whole checkpoint ({error}); remove it to start the run again") from error


def _state(header: dict[str, Any], arrays: Arrays) -> State:
    def tally(value: Mapping[str, Any] | None) -> Tally | None:
        return None if value is None else Tally(**value)

    history = [
        RoundRecord(
            item["round"],
            tuple(item["clients"]),
            item["train_loss"],
            {name: Tally(**own) for name, own in item["by_client"].items()},
        )
        for item in header.pop("history")
    ]

    def within(folder: str) -> Arrays:
        return {name.removeprefix(f"{folder}/"): array for name, array in arrays.items() if name.startswith(f"{folder}/")}

    context, counts, first_layer = within("context"), within("counts"), header.pop("first_layer", 0)
    steps, pooled_layer = header.pop("moments"), header.pop("pooled_layer", None)
    return State(
        coefficients=Coefficients.of(within("coefficients")),
        best=Coefficients.of(within("best")),
        context=Context(**context, first_layer=first_layer) if context else None,
        moments=None if steps is None else Moments(steps, within("first"), within("second")),
        readout=Readout(arrays["readout"], pooled_layer) if "readout" in arrays else None,
        client_vectors={name: ContextVectors(means, counts[name]) for name, means in within("means").items()},
        heads={name: Head(**own) for name, own in header.pop("heads", {}).items()},
        zero_shot=tally(header.pop("zero_shot")),
        history=tuple(history),
        traffic=tuple(Traffic(**item) for item in header.pop("traffic")),
        **header,
    )
