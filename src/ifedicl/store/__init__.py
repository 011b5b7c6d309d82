"""The task cache: adapters of calibrated tasks in a database, and an index of their signatures.

:func:`open_store` opens one; :class:`~ifedicl.store.protocol.Store` documents it.
"""

from __future__ import annotations

from importlib.util import find_spec

from ifedicl.errors import StorageError
from ifedicl.store.location import check_exists, location_of
from ifedicl.store.protocol import Store
from ifedicl.store.records import Entry, Neighbour, Stored, TaskKey
from ifedicl.store.requests import Answer, Found

__all__ = ["Answer", "Entry", "Found", "Neighbour", "Store", "Stored", "TaskKey", "open_store"]


def open_store(url: str | None = None, *, make: bool = True) -> Store:
    """Open a store; its tables are made or migrated to the current schema.

    Args:
        url: a file for SQLite, or ``postgresql://USER@HOST/DATABASE`` with pgvector. Default: ``IFEDICL_STORE``, or a file in
            the user's data folder.
        make: whether to make a file that does not exist.

    Raises:
        StorageError: the file does not exist and is not to be made, a package is missing, the database cannot be reached, or
            a newer ifedicl made it.
    """
    if missing := [name for name in ("alembic", "sqlalchemy") if find_spec(name) is None]:
        raise StorageError(f"packages: {', '.join(missing)} is not installed. Install it: pip install 'ifedicl[store]'")
    location = location_of(url)
    if not make:
        check_exists(location)
    from ifedicl.store.database import Database

    return Database(location)
