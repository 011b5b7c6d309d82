"""The two vector indexes: exact in memory beside SQLite, pgvector's HNSW in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from ifedicl.core.vectors import Array32
from ifedicl.store.signature import SIZE


class VectorIndex(Protocol):
    """Signatures of versions. It works in the caller's transaction, so that a version and its signature appear together."""

    def add(self, connection: sa.Connection, version: int, scope: str, vector: Array32) -> None:
        """Store the signature of a version; deleting the version deletes it."""

    def get(self, connection: sa.Connection, version: int) -> Array32 | None:
        """The signature of a version."""

    def nearest(self, connection: sa.Connection, scope: str, vector: Array32, count: int) -> Sequence[tuple[int, float]]:
        """Versions of the same scope and their cosines, nearest first."""


@dataclass(frozen=True)
class _ScopeCache:
    """The signatures of one scope, ``matrix`` (N, SIZE), as they were when ``state`` was read."""

    state: tuple[int, int]
    versions: npt.NDArray[np.int64]
    matrix: Array32


class MemoryIndex:
    """Blobs in a table, searched exactly in memory; they are read again after another process changes them."""

    def __init__(self) -> None:
        self._cached: dict[str, _ScopeCache] = {}
        self._table = _table(sa.LargeBinary())

    def add(self, connection: sa.Connection, version: int, scope: str, vector: Array32) -> None:
        blob = vector.astype("<f4").tobytes()
        connection.execute(self._table.insert().values(version_id=version, scope=scope, vector=blob))

    def get(self, connection: sa.Connection, version: int) -> Array32 | None:
        columns = self._table.c
        blob = connection.execute(sa.select(columns.vector).where(columns.version_id == version)).scalar()
        return None if blob is None else np.frombuffer(blob, "<f4").astype(np.float32)

    def nearest(self, connection: sa.Connection, scope: str, vector: Array32, count: int) -> Sequence[tuple[int, float]]:
        cached = self._scope(connection, scope)
        cosines = cached.matrix @ vector
        order = np.argsort(-cosines, kind="stable")[:count]
        return [(int(cached.versions[row]), float(cosines[row])) for row in order]

    def _scope(self, connection: sa.Connection, scope: str) -> _ScopeCache:
        columns = self._table.c
        # No id is given twice, so any change of the set changes its size or its greatest id.
        counted = sa.select(sa.func.count(), sa.func.coalesce(sa.func.max(columns.version_id), 0)).where(columns.scope == scope)
        size, greatest = connection.execute(counted).one()
        cached = self._cached.get(scope)
        if cached is None or cached.state != (size, greatest):
            chosen = sa.select(columns.version_id, columns.vector).where(columns.scope == scope).order_by(columns.version_id)
            rows = connection.execute(chosen).all()
            matrix = np.frombuffer(b"".join(row.vector for row in rows), "<f4").astype(np.float32).reshape(-1, SIZE)
            ids = np.array([row.version_id for row in rows], dtype=np.int64)
            cached = self._cached[scope] = _ScopeCache((size, greatest), ids, matrix)
        return cached


class PgVectorIndex:
    """Approximate search by pgvector's HNSW, in the database that all servers share."""

    def __init__(self) -> None:
        from pgvector.sqlalchemy import Vector

        self._table = _table(Vector(SIZE))

    def add(self, connection: sa.Connection, version: int, scope: str, vector: Array32) -> None:
        connection.execute(self._table.insert().values(version_id=version, scope=scope, vector=vector))

    def get(self, connection: sa.Connection, version: int) -> Array32 | None:
        columns = self._table.c
        found = connection.execute(sa.select(columns.vector).where(columns.version_id == version)).scalar()
        return None if found is None else np.asarray(found, dtype=np.float32)

    def nearest(self, connection: sa.Connection, scope: str, vector: Array32, count: int) -> Sequence[tuple[int, float]]:
        # The graph holds all scopes: search on until enough rows of this scope are found.
        connection.execute(sa.text("SET LOCAL hnsw.iterative_scan = strict_order"))
        columns = self._table.c
        distance = columns.vector.cosine_distance(vector)
        chosen = sa.select(columns.version_id, distance).where(columns.scope == scope).order_by(distance).limit(count)
        return [(int(row[0]), 1.0 - float(row[1])) for row in connection.execute(chosen)]


def _table(vector: sa.types.TypeEngine[Any]) -> sa.Table:
    return sa.Table(
        "signatures",
        sa.MetaData(),
        sa.Column("version_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("vector", vector, nullable=False),
    )
