"""What a store does. Another pair of databases is added by writing a class with these methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ifedicl.adapter import Adapter
from ifedicl.core.vectors import Array32
from ifedicl.store.records import Entry, Neighbour, Stored, TaskKey


class Store(Protocol):
    """Versions of tasks. Safe to use from several threads and processes; every write is whole or absent.

    All methods raise ``StorageError`` where the database refuses, and ``AdapterError`` where a version that is read is torn.
    """

    def latest(self, key: TaskKey) -> Stored | None:
        """The newest version of a task, or None: an exact hit or not."""
        ...

    def get(self, version: int) -> Stored:
        """One version by its id."""
        ...

    def entries(self, key: TaskKey | None = None, *, federation: str | None = None) -> Sequence[Entry]:
        """What there is, without tensors, by task and version; the last one is the newest of its task."""
        ...

    def put(
        self, key: TaskKey, adapter: Adapter, signature: Array32 | None = None, metrics: Mapping[str, Any] | None = None
    ) -> Entry:
        """Keep a new version; it takes the next number of its task."""
        ...

    def nearest(self, key: TaskKey, signature: Array32, count: int = 5) -> Sequence[Neighbour]:
        """Versions of the same federation, model and read position whose signatures are nearest, nearest first."""
        ...

    def reference(self, key: TaskKey, compute: Callable[[], Array32]) -> Array32:
        """What signatures of the key's model are centred on: what was first computed for it, and ever since the same."""
        ...

    def remove(self, version: int) -> None:
        """Delete one version, and its task with the last of them; the space is overwritten."""
        ...

    def collect(self, keep: int) -> int:
        """Delete all but the newest ``keep`` versions of every task, give space back; how many went."""
        ...

    def try_lease(self, key: TaskKey, holder: str, seconds: float) -> bool:
        """Take, or extend, the right to calibrate a task; False while another holder's has not expired."""
        ...

    def release(self, key: TaskKey, holder: str) -> None:
        """Give it back."""
        ...

    def close(self) -> None:
        """Let the connections go."""
        ...
