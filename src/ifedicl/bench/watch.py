"""Progress of a running plan: bars on standard error, a line for each finished cell on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress

from ifedicl.bench.cells import Record
from ifedicl.bench.plan import Cell
from ifedicl.bench.runner import Standing, Watcher
from ifedicl.progress import bars


class _Bars(Watcher):
    """One bar for cells, one for rounds of the current cell, and a line for each finished cell."""

    def __init__(self, progress: Progress, *, as_json: bool) -> None:
        self._progress = progress
        self._as_json = as_json
        self._cells = progress.add_task("cells", total=None)
        self._rounds = progress.add_task("", total=None)

    def started(self, cell: Cell, standing: Standing) -> None:
        done, seconds = len(standing.finished), standing.seconds_left
        left = "hours left are known after the first" if seconds is None else f"{seconds / 3600:.1f} hours left"
        self._progress.update(self._cells, description=f"cells, {left}", total=done + len(standing.left), completed=done)
        self._progress.update(self._rounds, description=str(cell), total=None, completed=0)

    def progressed(self, done: int, total: int) -> None:
        self._progress.update(self._rounds, completed=done, total=total)

    def finished(self, record: Record) -> None:
        if self._as_json:
            print(json.dumps(record.model_dump(mode="json")), flush=True)
        else:
            print(f"{record.cell}: accuracy {100 * record.accuracy:.1f}%, {record.wall_seconds:.0f} s", flush=True)


@contextmanager
def watching(*, as_json: bool) -> Iterator[Watcher]:
    """A watcher that draws bars if standard error is a terminal, and prints records (``as_json``) or lines of text."""
    with bars() as progress:
        yield _Bars(progress, as_json=as_json)
