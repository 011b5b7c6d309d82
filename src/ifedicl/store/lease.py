"""The right to calibrate a task, so that two equal requests do it once. It expires with its holder."""

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


@contextmanager
def leased(store: Store, key: TaskKey, *, seconds: float = SECONDS, poll: float = 0.5) -> Iterator[None]:
    """Wait until nobody else calibrates the task, hold it meanwhile, and give it back.

    Args:
        store: where all who might calibrate it look.
        key: of the task.
        seconds: after which it expires unless extended, which happens three times as often.
        poll: seconds between looks while another holds it.
    """
    holder = secrets.token_hex(16)
    while not store.try_lease(key, holder, seconds):
        time.sleep(poll)
    over = threading.Event()

    def extend() -> None:
        while not over.wait(seconds / 3):
            try:
                store.try_lease(key, holder, seconds)
            except StorageError:
                continue  # busy or away for a moment; at worst two calibrate, and both versions are kept

    thread = threading.Thread(target=extend, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        store.release(key, holder)
