"""Finished cells: one JSON object per line. The file is rewritten after each cell, so a killed run repeats no finished cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    """Held-out figures after ``round`` rounds; None where a figure is not finite."""

    round: int
    accuracy: float | None
    loss: float | None


class Record(Section):
    """A finished cell.

    Attributes:
        decides: digest of the settings that decide its numbers.
        data: digest of task and rows.
        commit: commit of the source tree, with ``-dirty`` if it has changes; "unknown" outside a tree.
        date: end of the cell, UTC.
        accuracy: on the test rows, mean over classifiers; so is ``macro_f1``.
        second: what ``macro_f1`` is: of another kind of task its first further figure.
        figures: the kind's further figures by name, as the reports show them; none in older cells.
        calibration_error: the same; None in older cells.
        hits: by classifier, a 1 or 0 for each test row.
        bytes_up: sent by one client, by stage, mean over clients; so are ``bytes_down`` (received) and ``cpu_seconds``.
        test_milliseconds: processor time for one test text.
        peak_mib: memory above the loaded model.
        choices: later cells of the same model, set and method use these.
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
    second: str = "macro-F1"
    figures: Mapping[str, float] = Field(default_factory=dict)
    calibration_error: Annotated[float, Field(ge=0, le=1)] | None = None
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
            raise ValueError("hits: received rows of different lengths; allowed: one length")
        return self

    @property
    def mean_hits(self) -> npt.NDArray[np.float64]:
        """``(N,)``: for each test row, the fraction of classifiers that are right."""
        return np.asarray(np.mean([[int(hit) for hit in row] for row in self.hits.values()], axis=0))

    @property
    def total_bytes(self) -> float:
        """Bytes to and from one client in all stages."""
        return sum(self.bytes_up.values()) + sum(self.bytes_down.values())

    @property
    def client_seconds(self) -> float:
        """Processor seconds of one client in all stages."""
        return sum(self.cpu_seconds.values())


def interval(hits: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95% Wilson interval of a mean over test rows. It covers other test rows, not other seeds."""
    return wilson(round(float(hits.sum())), len(hits))


def load_records(path: Path) -> list[Record]:
    """Read all finished cells.

    Raises:
        StorageError: the file cannot be read, or a line is incomplete or has another format.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: cannot be read ({error})") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            raise StorageError(
                f"{path}, line {number}: not a finished cell of this version ({error.error_count()} faults). "
                "Remove the line; the cell then runs again."
            ) from error
    return records


def save_records(records: Sequence[Record], path: Path) -> None:
    """Write all finished cells, in the order in which they finished.

    Raises:
        StorageError: the file cannot be written; the earlier file is unchanged.
    """
    files.write_text(path, "".join(json.dumps(record.model_dump(mode="json"), allow_nan=False) + "\n" for record in records))
