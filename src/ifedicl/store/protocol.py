"""The protocol of a store. A class with these methods adds another database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ifedicl.adapter import Adapter
from ifedicl.core.vectors import Array32
from ifedicl.store.records import Entry, Neighbour, Stored, TaskKey


class Store(Protocol):
    """Versions of tasks. Safe to use from several threads and processes; every write is atomic.

    All methods raise ``StorageError`` for errors of the database, and ``AdapterError`` for a stored version that is damaged.
    """

    def latest(self, key: TaskKey) -> Stored | None:
        """The newest version of a task; None: there is none."""

    def get(self, version: int) -> Stored:
        """One version by its id."""

    def entries(self, *, federation: str | None = None) -> Sequence[Entry]:
        """Stored versions without tensors, ordered by task and number; the last of a task is its newest."""

    def put(
        self, key: TaskKey, adapter: Adapter, signature: Array32 | None = None, metrics: Mapping[str, Any] | None = None
    ) -> Entry:
        """Store a new version under the next number of its task."""

    def nearest(self, key: TaskKey, signature: Array32, count: int = 5) -> Sequence[Neighbour]:
        """Versions of the same federation, model and read position whose signatures are nearest, nearest first."""

    def reference(self, key: TaskKey, compute: Callable[[], Array32]) -> Array32:
        """``(L, 2, d)`` vectors that signatures of the key's model are centred on: computed once, then the stored ones."""

    def remove(self, version: int) -> None:
        """Delete one version and overwrite its space; a task without versions is deleted too."""

    def collect(self, keep: int) -> int:
        """Delete all but the newest ``keep`` versions of every task, overwrite their space; return the number deleted."""

    def try_lease(self, key: TaskKey, holder: str, seconds: float) -> bool:
        """Take or extend the lease of a task; False while another holder's lease is valid. A lease has at most 300 seconds."""

    def release(self, key: TaskKey, holder: str) -> None:
        """Release the holder's lease of a task."""

    def close(self) -> None:
        """Close the connections."""
