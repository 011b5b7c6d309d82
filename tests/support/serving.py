"""A real `ifedicl serve` in a process of its own, on loopback, for as long as a block lasts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_PATIENCE = 60.0


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        url: of it, with a slash at its end.
        process: it.
        log: what it wrote to standard error so far.
    """

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rstrip("/").rpartition(":")[2])

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text()

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def serving(folder: Path, *arguments: str, port: int = 0) -> Iterator[Running]:
    """Start a server; it is stopped, or killed where it will not stop.

    Args:
        folder: where its log goes.
        arguments: of ``ifedicl serve``.
        port: 0: any that is free.
    """
    log = folder / f"serve-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "ifedicl.cli", "serve", *arguments, "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield Running(_url(process, log), process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"serving .* at (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()}")
