"""``metrics.jsonl``: what a run did, one JSON object a line, appended while it runs.

Whoever watches reads the end of the file. Where a run begins, is resumed and ends, the file is written anew from what is
certain by then, so that a line that a crash tore, or that tells of work to be done again, does not stay.
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
from ifedicl.metrics import Evaluation
from ifedicl.task import Task

Line = dict[str, Any]


class Journal:
    """Writes the file of one run; call it with the coordinator's events."""

    def __init__(self, path: Path, task: Task, clients: Iterable[str]) -> None:
        """Write nothing yet.

        Args:
            path: of the file.
            task: what is asked.
            clients: names of all who may take part.
        """
        self._path = path
        self._first: Line = {"event": "run", "task": task.name, "labels": list(task.labels), "clients": list(clients)}

    def __call__(self, event: Event) -> None:
        """Append one event; where the run begins, start the file anew, as it was then.

        Raises:
            StorageError: it cannot be written.
        """
        if isinstance(event, Begun):
            self._write(_lines(event.state) if event.state else ())
        else:
            self._append(_line(event))

    def finish(self, outcome: Outcome, tests: Mapping[str, Evaluation | None] = MappingProxyType({})) -> None:
        """Write the whole file once more, from the last state, with what came out.

        Args:
            outcome: of the run.
            tests: figures on text that nothing was chosen by; None for those that were not measured.

        Raises:
            StorageError: it cannot be written.
        """
        gate = outcome.gate
        passed = gate and {"open": gate.is_open, "adapter": asdict(gate.adapter), "raw": asdict(gate.zero_shot)}
        lines = [*_lines(outcome.state), {"event": "finished", "chosen_round": outcome.chosen_round, "gate": passed}]
        measured = {name: evaluation for name, evaluation in tests.items() if evaluation is not None}
        self._write([*lines, *({"event": "test", "name": name, **own.summary()} for name, own in measured.items())])

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
    """In the order in which it happened: exchanges of round ``n`` come before the record that ends it."""
    told: list[tuple[int, int, Line]] = [(item.round, 0, {"event": "exchange", **asdict(item)}) for item in state.traffic]
    told += [
        (record.round - 1, 1, {"event": "round", **_round(record), "rounds": state.last_round}) for record in state.history
    ]
    if state.zero_shot is not None:
        told.append((-1, 0, {"event": "zero_shot", "held_out": asdict(state.zero_shot)}))
    return [line for _, _, line in sorted(told, key=lambda item: item[:2])]
