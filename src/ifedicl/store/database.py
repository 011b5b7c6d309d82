"""The store over SQLAlchemy: SQLite in one file, or PostgreSQL with pgvector."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ifedicl.adapter import Adapter
from ifedicl.core.vectors import Array32
from ifedicl.errors import StorageError
from ifedicl.files import disk_faults_named
from ifedicl.store.index import MemoryIndex, PgVectorIndex, VectorIndex
from ifedicl.store.lease import LONGEST
from ifedicl.store.records import Entry, Neighbour, Stored, TaskKey
from ifedicl.store.schema import leases, references, tasks, versions

_HEAD = "0002"
_BUSY_SECONDS = 60
_RETRY_SECONDS = 0.01  # between two attempts where SQLite does not wait by itself
_ALLOWED = "a file (SQLite), or postgresql://USER@HOST/DATABASE"
_UPGRADE_LOCK = 0x1FED1C1  # an arbitrary number, the same in all versions
_INSERT: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_ENTRY = sa.select(
    versions.c.id,
    tasks.c.name,
    tasks.c.federation,
    tasks.c.fingerprint,
    tasks.c.key,
    versions.c.number,
    versions.c.created,
    sa.func.length(versions.c.tensors),
    versions.c.metrics,
).join_from(versions, tasks)


class Database:
    """A :class:`~ifedicl.store.protocol.Store`; :func:`~ifedicl.store.open_store` documents its parameters."""

    def __init__(self, location: str) -> None:
        """Open the store at ``location``, or make it."""
        parsed = _parsed(location)
        self.name = parsed.render_as_string(hide_password=True)
        self._dialect = parsed.get_backend_name()
        is_file = self._dialect == "sqlite"
        try:
            self._engine = _sqlite(parsed) if is_file else sa.create_engine(parsed, pool_pre_ping=True)
            self._index: VectorIndex = MemoryIndex() if is_file else PgVectorIndex()
        except ModuleNotFoundError as error:
            raise StorageError(
                f"packages: {error.name} is not installed. Install it: pip install 'ifedicl[postgres]'"
            ) from error
        try:
            self._upgrade()
        except BaseException:
            self.close()
            raise

    def latest(self, key: TaskKey) -> Stored | None:
        newest = (
            sa.select(versions.c.id)
            .join_from(versions, tasks)
            .where(tasks.c.key == key.digest)
            .order_by(versions.c.number.desc())
            .limit(1)
        )
        with self._reading() as connection:
            found = connection.execute(newest).scalar()
            return None if found is None else self._get(connection, found)

    def get(self, version: int) -> Stored:
        with self._reading() as connection:
            return self._get(connection, version)

    def entries(self, *, federation: str | None = None) -> Sequence[Entry]:
        chosen = _ENTRY.order_by(tasks.c.name, tasks.c.id, versions.c.number)
        if federation is not None:
            chosen = chosen.where(tasks.c.federation == federation)
        with self._reading() as connection:
            return [Entry(*row) for row in connection.execute(chosen)]

    def put(
        self, key: TaskKey, adapter: Adapter, signature: Array32 | None = None, metrics: Mapping[str, Any] | None = None
    ) -> Entry:
        header, tensors = adapter.header_and_tensors()
        values: dict[str, Any] = {"key": key.digest, "scope": key.scope, "name": adapter.task.name}
        values |= {"federation": key.federation, "fingerprint": key.fingerprint, "last_version": 1}
        with self._writing() as connection:
            # One statement gives the number and locks the task's row until the version is inserted.
            counted = _INSERT[self._dialect](tasks).values(**values)
            counted = counted.on_conflict_do_update(index_elements=["key"], set_={"last_version": tasks.c.last_version + 1})
            task, number = connection.execute(counted.returning(tasks.c.id, tasks.c.last_version)).one()
            row = {"task_id": task, "number": number, "created": self._now(connection), "header": header, "tensors": tensors}
            added = versions.insert().values(**row, metrics=dict(metrics or {})).returning(versions.c.id)
            version = connection.execute(added).scalar_one()
            if signature is not None:
                self._index.add(connection, version, key.scope, signature)
            return _entry(connection, version)

    def nearest(self, key: TaskKey, signature: Array32, count: int = 5) -> Sequence[Neighbour]:
        with self._reading() as connection:
            found = self._index.nearest(connection, key.scope, signature, count)
            chosen = _ENTRY.where(versions.c.id.in_([version for version, _ in found]))
            entries = {row[0]: Entry(*row) for row in connection.execute(chosen)}
        return [Neighbour(entries[version], cosine) for version, cosine in found if version in entries]

    def reference(self, key: TaskKey, compute: Callable[[], Array32]) -> Array32:
        stored = self._reference(key)
        if stored is not None:
            return stored
        vectors = compute()
        blob = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
        with self._writing() as connection:
            added = _INSERT[self._dialect](references).values(
                fingerprint=key.fingerprint, read_position=key.read_position, shape=list(vectors.shape), vectors=blob
            )
            connection.execute(added.on_conflict_do_nothing())
        stored = self._reference(key)  # that of another process, if it was first
        assert stored is not None
        return stored

    def remove(self, version: int) -> None:
        with self._writing() as connection:
            if connection.execute(versions.delete().where(versions.c.id == version)).rowcount == 0:
                raise _absent(version)
            connection.execute(_EMPTY_TASKS)
        self._erase_deleted()

    def collect(self, keep: int) -> int:
        newer = versions.alias()
        is_newer = (newer.c.task_id == versions.c.task_id) & (newer.c.number > versions.c.number)
        count = sa.select(sa.func.count()).where(is_newer).scalar_subquery()
        with self._writing() as connection:
            deleted = connection.execute(versions.delete().where(count >= keep)).rowcount
            connection.execute(_EMPTY_TASKS)
            connection.execute(leases.delete().where(leases.c.expires < self._now(connection)))
        self._erase_deleted()
        return deleted

    def try_lease(self, key: TaskKey, holder: str, seconds: float) -> bool:
        with self._writing() as connection:
            now = self._now(connection)
            values = {"holder": holder, "expires": now + min(seconds, LONGEST)}
            taken = _INSERT[self._dialect](leases).values(key=key.digest, **values)
            # The clocks of two machines may differ: SQLite has no clock of its own.
            is_over = (leases.c.expires < now) | (leases.c.expires > now + LONGEST)
            is_free = is_over | (leases.c.holder == holder)
            taken = taken.on_conflict_do_update(index_elements=["key"], set_=values, where=is_free)
            return connection.execute(taken.returning(leases.c.key)).first() is not None

    def release(self, key: TaskKey, holder: str) -> None:
        with self._writing() as connection:
            connection.execute(leases.delete().where(leases.c.key == key.digest, leases.c.holder == holder))

    def close(self) -> None:
        self._engine.dispose()

    def _get(self, connection: sa.Connection, version: int) -> Stored:
        entry = _entry(connection, version)
        chosen = sa.select(versions.c.header, versions.c.tensors).where(versions.c.id == version)
        header, tensors = connection.execute(chosen).one()
        adapter = Adapter.unpacked(header, bytes(tensors), source=f"version {version} in {self.name}")
        return Stored(entry, adapter, self._index.get(connection, version))

    def _reference(self, key: TaskKey) -> Array32 | None:
        columns = references.c
        chosen = sa.select(columns.shape, columns.vectors).where(
            columns.fingerprint == key.fingerprint, columns.read_position == key.read_position
        )
        with self._reading() as connection:
            row = connection.execute(chosen).first()
        return None if row is None else np.frombuffer(row.vectors, "<f4").astype(np.float32).reshape(row.shape)

    def _now(self, connection: sa.Connection) -> float:
        """Seconds since 1970, by one clock for all processes that share the store."""
        if self._dialect == "sqlite":
            return time.time()
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _translated_errors(self.name), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with _translated_errors(self.name), self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    def _erase_deleted(self) -> None:
        """Leave no copy of deleted rows: SQLite overwrites them in place and in its journal, PostgreSQL vacuums."""
        engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        with _translated_errors(self.name), engine.connect() as connection:
            if self._dialect == "sqlite":
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            else:
                connection.exec_driver_sql("VACUUM versions, signatures")

    def _upgrade(self) -> None:
        if self._revision() == _HEAD:
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._writing() as connection:  # one process at a time; a failure changes nothing
            if self._dialect == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _revision(self) -> str | None:
        with self._reading() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        if found is not None and str(found) > _HEAD:
            raise StorageError(
                f"{self.name}: received schema {found}, of a newer ifedicl; allowed: up to {_HEAD}. Update ifedicl"
            )
        return found


_EMPTY_TASKS = tasks.delete().where(~sa.exists().where(versions.c.task_id == tasks.c.id))


def _entry(connection: sa.Connection, version: int) -> Entry:
    row = connection.execute(_ENTRY.where(versions.c.id == version)).first()
    if row is None:
        raise _absent(version)
    return Entry(*row)


def _absent(version: int) -> StorageError:
    return StorageError(f"id: received {version}; this store has no such version. `ifedicl tasks list` shows its versions")


def _parsed(text: str) -> sa.URL:
    if "://" not in text:
        return sa.URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        url = sa.make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise StorageError(f"store: the URL cannot be parsed; allowed: {_ALLOWED}") from error
    if backend not in _INSERT:
        raise StorageError(f"store: received a URL of kind {backend!r}; allowed: {_ALLOWED}")
    return url.set(drivername="postgresql+psycopg") if backend == "postgresql" else url


def _sqlite(url: sa.URL) -> sa.Engine:
    path = Path(url.database or "")
    with disk_faults_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readable by its owner only, before it has content; SQLite gives its journal the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the event below begins transactions, not the driver
        _begin_wal(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that begins as a read cannot wait for another writer when it writes.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _begin_wal(connection: sqlite3.Connection) -> None:
    """Write ahead, as every process that uses the file does. SQLite refuses at once where two change a new file's mode."""
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # extended codes have more bits
            if not is_busy or time.monotonic() >= until:
                raise
        time.sleep(_RETRY_SECONDS)


@contextmanager
def _translated_errors(name: str) -> Iterator[None]:
    """Raise ``StorageError`` for the database's errors, without their parameters: these hold the rows."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or type(error).__name__
        raise StorageError(
            f"{name}: {str(cause).strip()}. Earlier writes are intact. Check that the database is reachable and not damaged"
        ) from None
