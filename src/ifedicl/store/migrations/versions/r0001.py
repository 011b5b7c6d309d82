"""Adds tasks, versions, signatures and references."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("federation", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("last_version", sa.Integer, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("header", sa.JSON, nullable=False),
        sa.Column("tensors", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("task_id", "number"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "backbone_references",
        sa.Column("fingerprint", sa.Text, primary_key=True),
        sa.Column("read_position", sa.Text, primary_key=True),
        sa.Column("shape", sa.JSON, nullable=False),
        sa.Column("vectors", sa.LargeBinary, nullable=False),
    )
    signature = sa.LargeBinary() if op.get_bind().dialect.name == "sqlite" else _pgvector()
    version = sa.ForeignKey("versions.id", ondelete="CASCADE")
    op.create_table(
        "signatures",
        sa.Column("version_id", sa.Integer, version, primary_key=True, autoincrement=False),
        sa.Column("scope", sa.String(64), nullable=False, index=True),
        sa.Column("vector", signature, nullable=False),
    )
    if op.get_bind().dialect.name != "sqlite":
        op.execute("CREATE INDEX signatures_hnsw ON signatures USING hnsw (vector vector_cosine_ops)")


def _pgvector() -> Any:
    from pgvector.sqlalchemy import Vector

    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    return Vector(256)
