"""The right to calibrate a task, so that two equal requests calibrate once. It expires after its holder has died."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ifedicl.errors import StorageError
from ifedicl.store.protocol import Store
from ifedicl.store.records import TaskKey

SECONDS = 30.0
"""How long a lease outlives a holder that was killed."""
LONGEST = 300.0
"""Most seconds of a lease. One that ends later was written by a clock that is ahead, and holds nobody up."""
PATIENCE = 12 * 3600.0
"""How long a task is waited for: a holder that hangs extends its lease without end."""


@contextmanager
def leased(
    store: Store, key: TaskKey, *, seconds: float = SECONDS, poll: float = 0.5, patience: float = PATIENCE
) -> Iterator[None]:
    """Wait for the lease of a task, hold it while the block runs, and release it.

    It expires after ``seconds`` and is extended three times in them; ``poll`` is the seconds between attempts to take it.

    Raises:
        StorageError: another process has held it for ``patience`` seconds.
    """
    holder = secrets.token_hex(16)
    end = time.monotonic() + patience
    while not store.try_lease(key, holder, seconds):
        if time.monotonic() >= end:
            raise StorageError(
                f"task cache: another process has been calibrating this task for {patience / 3600:.1f} hours, longer than a "
                "task is waited for. See whether it still works; end it, or run without --store"
            )
        time.sleep(poll)
    over = threading.Event()

    def extend() -> None:
        while not over.wait(seconds / 3):
            try:
                store.try_lease(key, holder, seconds)
            except StorageError:
                continue  # the database is busy; at worst two processes calibrate, and both versions are stored

    thread = threading.Thread(target=extend, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        store.release(key, holder)
