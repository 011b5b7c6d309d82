"""Finished cells: one JSON object a line, written whole after each cell, so that a killed run repeats none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from ifedicl import files
from ifedicl.bench.plan import Cell
from ifedicl.errors import StorageError
from ifedicl.metrics import wilson
from ifedicl.settings import Section


class CurvePoint(Section):
    """Held-out figures after so many rounds; None where a figure is not a number."""

    round: int
    accuracy: float | None
    loss: float | None


class Record(Section):
    """A finished cell.

    Attributes:
        cell: which one.
        decides: digest of the settings that decide its numbers.
        data: digest of task and rows.
        commit: of the source tree, with ``-dirty`` where it differs; "unknown" outside one.
        date: when it was finished, UTC.
        machine: processor, threads and versions.
        fingerprint: of the model.
        dtype: that the model computed in.
        accuracy: on the test rows; the mean where several clients have a classifier each.
        macro_f1: likewise.
        hits: by classifier, a 1 or 0 for each test row.
        rounds: of communication.
        chosen_round: the one that was tested.
        curve: held-out figures.
        bytes_up: from a client, by stage, mean over clients.
        bytes_down: to a client, likewise.
        cpu_seconds: of a client, by stage, likewise.
        test_milliseconds: of the processor, for one test text.
        peak_mib: memory above the loaded model.
        wall_seconds: of the cell.
        choices: what later cells of the same model, set and method take over.
        settings: of the method.
    """

    cell: Cell
    decides: str
    data: str
    commit: str
    date: str
    machine: Mapping[str, Any]
    fingerprint: str
    dtype: str
    accuracy: Annotated[float, Field(ge=0, le=1)]
    macro_f1: Annotated[float, Field(ge=0, le=1)]
    hits: Annotated[Mapping[str, Annotated[str, Field(pattern="^[01]+$")]], Field(min_length=1)]
    rounds: int
    chosen_round: int
    curve: tuple[CurvePoint, ...]
    bytes_up: Mapping[str, float]
    bytes_down: Mapping[str, float]
    cpu_seconds: Mapping[str, float]
    test_milliseconds: float
    peak_mib: float
    wall_seconds: float
    choices: Mapping[str, float]
    settings: Mapping[str, Any]

    @model_validator(mode="after")
    def _has_rows_of_one_length(self) -> Self:
        if len({len(row) for row in self.hits.values()}) > 1:
            raise ValueError("hits of different lengths")
        return self

    @property
    def mean_hits(self) -> npt.NDArray[np.float64]:
        """``(N,)``: for each test row, the fraction of classifiers that were right."""
        mean: npt.NDArray[np.float64] = np.mean([[int(hit) for hit in row] for row in self.hits.values()], axis=0)
        return mean

    @property
    def total_bytes(self) -> float:
        """To and from a client, all stages."""
        return sum(self.bytes_up.values()) + sum(self.bytes_down.values())

    @property
    def client_seconds(self) -> float:
        """Of a client's processor, all stages."""
        return sum(self.cpu_seconds.values())


def interval(hits: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95% Wilson interval of a mean over test rows: what other rows would give. What other seeds would give is not in it."""
    return wilson(round(float(hits.sum())), len(hits))


def load_records(path: Path) -> list[Record]:
    """All finished cells.

    Raises:
        StorageError: the file cannot be read, or a line is torn or of another format.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            raise StorageError(
                f"{path}, line {number}: not a finished cell of this version ({error.error_count()} faults); remove the line, "
                "and that cell is run again"
            ) from error
    return records


def save_records(records: Sequence[Record], path: Path) -> None:
    """All finished cells, in the order in which they were finished.

    Raises:
        StorageError: the disk refuses; the file as it was before is untouched.
    """
    files.write_text(path, "".join(json.dumps(record.model_dump(mode="json"), allow_nan=False) + "\n" for record in records))


def now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
