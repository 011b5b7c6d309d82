"""The task cache: adapters of calibrated tasks in a database, and an index of their signatures.

:func:`open_store` is the door; :class:`~ifedicl.store.protocol.Store` says what is behind it.
"""

from __future__ import annotations

from ifedicl.errors import StorageError
from ifedicl.store.protocol import Store
from ifedicl.store.records import Entry, Neighbour, Stored, TaskKey
from ifedicl.store.requests import Answer, Found

__all__ = ["Answer", "Entry", "Found", "Neighbour", "Store", "Stored", "TaskKey", "open_store"]


def open_store(url: str | None = None, *, make: bool = True) -> Store:
    """Open a store, made or brought up to date where need be.

    Args:
        url: a file for SQLite, or ``postgresql://USER@HOST/DATABASE`` with pgvector; left out: ``IFEDICL_STORE``, or a file in
            the user's data folder.
        make: a file that is not there is made.

    Raises:
        StorageError: the file is not there and may not be made, a package is missing, the database cannot be reached, or a
            newer ifedicl made it.
    """
    try:
        from ifedicl.store.database import Database
    except ModuleNotFoundError as error:
        raise StorageError(
            f"the task cache needs the package {error.name}, which is not installed: pip install 'ifedicl[store]'"
        ) from error
    return Database(url, make=make)
