"""``metrics.jsonl``: the journal of a run, one JSON object a line.

Lines are appended while the run goes on. When it begins, resumes or ends, the file is rewritten from the state. This removes
torn lines, and lines about work that is repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ifedicl import files
from ifedicl.federation.coordinator import Outcome
from ifedicl.federation.events import Begun, Delivered, Event, RoundDone, StepStarted
from ifedicl.federation.state import RoundRecord, State
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyEvaluation

Line = dict[str, Any]


class Journal:
    """Writes the file of one run; call it with the coordinator's events."""

    def __init__(self, path: Path, task: AnyTask, clients: Iterable[str]) -> None:
        """Take the path, the task and the names of all clients; write nothing yet."""
        self._path = path
        self._first: Line = {"event": "run", "task": task.name, **task.facts, "clients": list(clients)}

    def __call__(self, event: Event) -> None:
        """Append one event; when the run begins, rewrite the file from its state.

        Raises:
            StorageError: it cannot be written.
        """
        if isinstance(event, Begun):
            self._write(_lines(event.state) if event.state else ())
        else:
            self._append(_line(event))

    def finish(self, outcome: Outcome, tests: Mapping[str, AnyEvaluation | None] = MappingProxyType({})) -> None:
        """Rewrite the whole file from the last state, with the result.

        Args:
            outcome: of the run.
            tests: figures on test data, which chose nothing; None for those that were not measured.

        Raises:
            StorageError: it cannot be written.
        """
        gate = outcome.gate
        passed = gate and {"open": gate.is_open, "adapter": asdict(gate.adapter), "raw": asdict(gate.zero_shot)}
        lines = [*_lines(outcome.state), {"event": "finished", "chosen_round": outcome.chosen_round, "gate": passed}]
        measured = {name: evaluation for name, evaluation in tests.items() if evaluation is not None}
        self._write(
            [*lines, *({"event": "test", "name": name, **evaluation.summary()} for name, evaluation in measured.items())]
        )

    def _write(self, lines: Iterable[Line]) -> None:
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in (self._first, *lines)))

    def _append(self, line: Line) -> None:
        files.append_text(self._path, json.dumps(line) + "\n")


def _line(event: StepStarted | Delivered | RoundDone) -> Line:
    if isinstance(event, StepStarted):
        return {"event": "step", **asdict(event)}
    if isinstance(event, Delivered):
        return {"event": "exchange", **asdict(event.traffic)}
    return {"event": "round", **_round(event.record), "rounds": event.rounds}


def _round(record: RoundRecord) -> Line:
    return {**asdict(record), "held_out": record.held_out and asdict(record.held_out), "worst": record.worst}


def _lines(state: State) -> list[Line]:
    """The lines in order of time: the exchanges of round ``n`` come before its record."""
    lines: list[tuple[int, int, Line]] = [(item.round, 0, {"event": "exchange", **asdict(item)}) for item in state.traffic]
    lines += [
        (record.round - 1, 1, {"event": "round", **_round(record), "rounds": state.last_round}) for record in state.history
    ]
    if state.zero_shot is not None:
        lines.append((-1, 0, {"event": "zero_shot", "held_out": asdict(state.zero_shot)}))
    return [line for _, _, line in sorted(lines, key=lambda item: item[:2])]
