"""The current tables. ``migrations`` turns those of earlier versions into these."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(64), nullable=False, unique=True),
    sa.Column("scope", sa.String(64), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("federation", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("last_version", sa.Integer, nullable=False),
)
"""``last_version`` never falls, so that no number is used twice."""

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("task_id", sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("header", sa.JSON, nullable=False),
    sa.Column("tensors", sa.LargeBinary, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.UniqueConstraint("task_id", "number"),
    sqlite_autoincrement=True,
)

references = sa.Table(
    "backbone_references",
    metadata,
    sa.Column("fingerprint", sa.Text, primary_key=True),
    sa.Column("read_position", sa.Text, primary_key=True),
    sa.Column("shape", sa.JSON, nullable=False),
    sa.Column("vectors", sa.LargeBinary, nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("expires", sa.Float(53), nullable=False),
)
