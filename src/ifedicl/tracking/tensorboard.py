"""Figures for TensorBoard. Extra ``tensorboard``; the writer needs neither TensorBoard nor torch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from ifedicl.files import disk_faults_named
from ifedicl.tracking.figures import Tracker


class _EventFile:
    """Writes in the caller's thread: ``SummaryWriter`` has one of its own, and a killed process would lose the last round."""

    def __init__(self, writer: EventsWriter) -> None:
        self._writer = writer

    def log(self, figures: Mapping[str, float], step: int, /) -> None:
        for name, value in figures.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._writer.flush()


@contextmanager
def tensorboard(folder: Path) -> Iterator[Tracker]:
    """A tracker that writes an event file to ``folder``; a resumed run adds one.

    Raises:
        StorageError: it cannot be written.
    """
    with disk_faults_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Files are named by second and machine; a run that is resumed at once must not replace the first one's.
        writer = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")
    try:
        yield _EventFile(writer)
    finally:
        writer.close()
