"""Keeps the coordinator's state in one file, which is written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ifedicl import files
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.server_optimizer import Moments
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.errors import ConfigError, Fault, MessageError, StorageError
from ifedicl.federation.checkpoint_tables import StoredTables, Tables
from ifedicl.federation.messages import Arrays, pack, unpack
from ifedicl.federation.state import Fit, Forgotten, State
from ifedicl.metrics import Tally

RUN_FORMAT = 5
"""The run format. Checkpoints of format 1 have no number; their digest holds settings that no longer exist. Format 2 had all
exchanges in the header of the frame, which has a largest size. Format 3 had the raw model's figures of all clients together. In
format 4 there were no sums of a readout."""
_KIND = "checkpoint"
_HEADER = (
    "run",
    "round",
    "phase_start",
    "phase_rounds",
    "phases",
    "best_round",
    "stale",
    "vectors_due",
    "cursors",
    "dtypes",
    "readout_round",
)
"""Fields of a state that are plain JSON."""


class Memory:
    """The state of a run, and the file that keeps it."""

    def __init__(self, state: State, path: Path | None) -> None:
        """Begin with ``state``. Without a path nothing is ever written."""
        self.state = state
        self._path = path
        self._tables = Tables()
        self._waits = False  # for global vectors, before the file is replaced

    @property
    def heads_file(self) -> Path | None:
        """The file of the ledgers' heads, beside the checkpoint."""
        return self._path and self._path.with_name("heads.jsonl")

    def note(self, state: State) -> None:
        """Go on from ``state``; it is written with the next :meth:`keep`."""
        self.state = state

    def keep(self, state: State) -> None:
        """Go on from ``state`` and write the checkpoint.

        Raises:
            StorageError: the disk refuses; the checkpoint before it is untouched.
        """
        self.note(state)
        self._waits = self._waits and state.vectors_due
        if self._path is not None and not self._waits:
            save(state, self._path, self._tables)

    def begin_again(self, state: State) -> None:
        """Go on from ``state``. The file keeps the former state until a kept one has done stage 1."""
        self.note(state)
        self._waits = True

    def recall(self) -> bool:
        """Go on from the file, if there is one of this run; return whether there is.

        Raises:
            StorageError: the file is torn.
            ConfigError: the file is of another run or format.
        """
        stored = load_of(self.state.run, self._path) if self._path else None
        if stored is None:
            return False
        self.state = stored
        return True


def save(state: State, path: Path, tables: Tables | None = None) -> None:
    """Write ``state`` atomically; ``tables`` are of the states before it, which saves work.

    Raises:
        StorageError: the disk refuses; the checkpoint before it is untouched.
    """
    words, rows = (tables or Tables()).of(state)
    header: dict[str, Any] = {name: getattr(state, name) for name in _HEADER}
    header["words"] = words
    header["losses"] = [(record.round, record.train_loss) for record in state.history]
    header["zero_shot"] = {name: asdict(tally) for name, tally in state.zero_shot_by_client.items()}
    header["first_layer"] = state.context.first_layer if state.context else 0
    header["moments"] = state.moments and state.moments.steps
    header["forgotten"] = [asdict(item) for item in state.forgotten]
    header["pooled_layers"] = state.readout and state.readout.pooled_layers
    folders: dict[str, Mapping[str, npt.NDArray[Any]]] = {
        "coefficients": state.coefficients.arrays,
        "best": state.best.arrays,
        "context": state.context.arrays if state.context else {},
        "first": state.moments.first if state.moments else {},
        "second": state.moments.second if state.moments else {},
        "means": {name: vectors.means for name, vectors in state.client_vectors.items()},
        "counts": {name: vectors.counts for name, vectors in state.client_vectors.items()},
    }
    arrays = rows | {f"{folder}/{name}": array for folder, own in folders.items() for name, array in own.items()}
    if state.fit is not None:
        header["fit"] = state.fit.round, state.fit.refinements, state.fit.sums.clients
        arrays |= {f"fit/{name}": array for name, array in state.fit.arrays.items()}
    if state.readout is not None:
        arrays["readout"] = state.readout.weights
    arrays["json"] = np.frombuffer(json.dumps(header, separators=(",", ":")).encode(), dtype=np.uint8)
    files.write_bytes(path, pack(_KIND, {"format": RUN_FORMAT}, arrays), private=True)  # it holds single clients' sums


def load_of(run: str, path: Path) -> State | None:
    """The state of this run in ``path``, or None where there is none.

    Raises:
        StorageError: the file is torn.
        ConfigError: the file is of another run or format.
    """
    stored = load(path)
    if stored is not None and stored.run != run:
        remedy = "Task, method or model have changed. Restore them, or start again in another folder."
        fault = Fault("checkpoint", f"one of run {stored.run[:12]}", f"run {run[:12]}", remedy)
        raise ConfigError(str(path), [fault])
    return stored


def load(path: Path) -> State | None:
    """The state in ``path``, or None where there is none.

    Raises:
        StorageError: the file is torn.
        ConfigError: the run has another format.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    try:
        kind, header, arrays = unpack(data)
        if kind != _KIND:
            raise ValueError(f"a {kind} frame")
        if (found := header.get("format", 1)) != RUN_FORMAT:
            remedy = "Finish the run with the ifedicl that began it, or start again in another folder."
            raise ConfigError(str(path), [Fault("checkpoint", f"run format {found}", f"run format {RUN_FORMAT}", remedy)])
        return _state(json.loads(arrays["json"].tobytes()), arrays)
    except (MessageError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path} is not a whole checkpoint ({error}); remove it to start the run again") from error


def _forgotten(round: int, left: list[str], changed: list[str], more_rounds: int) -> Forgotten:  # noqa: A002
    return Forgotten(round, tuple(left), tuple(changed), more_rounds)


def _state(header: dict[str, Any], arrays: Arrays) -> State:
    def within(folder: str) -> Arrays:
        return {name.removeprefix(f"{folder}/"): array for name, array in arrays.items() if name.startswith(f"{folder}/")}

    context, counts, steps = within("context"), within("counts"), header["moments"]
    tables = StoredTables(header["words"], arrays)
    return State(
        **{name: header[name] for name in _HEADER},
        coefficients=Coefficients.of(within("coefficients")),
        best=Coefficients.of(within("best")),
        client_vectors={name: ContextVectors(means, counts[name]) for name, means in within("means").items()},
        heads=tables.heads,
        context=Context(**context, first_layer=header["first_layer"]) if context else None,
        moments=None if steps is None else Moments(steps, within("first"), within("second")),
        readout=Readout(arrays["readout"], tuple(header["pooled_layers"])) if "readout" in arrays else None,
        zero_shot_by_client={name: Tally(**tally) for name, tally in header["zero_shot"].items()},
        fit=Fit.of(header["fit"], within("fit")) if "fit" in header else None,
        history=tables.history(header["losses"]),
        traffic=tables.traffic,
        forgotten=tuple(_forgotten(**item) for item in header.get("forgotten", ())),
    )
