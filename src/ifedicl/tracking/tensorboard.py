"""Figures for TensorBoard. Extra ``tensorboard``; the writer needs neither TensorBoard nor torch."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tensorboardX import SummaryWriter

from ifedicl.tracking.figures import Tracker


class _EventFiles:
    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def log(self, figures: Mapping[str, float], step: int, /) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


@contextmanager
def tensorboard(folder: Path) -> Iterator[Tracker]:
    """A tracker that writes event files to ``folder``; a resumed run adds one."""
    # Files are named by second and machine; a run that is resumed at once must not replace the first one's.
    writer = SummaryWriter(str(folder), filename_suffix=f".{secrets.token_hex(4)}")
    try:
        yield _EventFiles(writer)
    finally:
        writer.close()
