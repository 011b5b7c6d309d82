"""Adds metrics of each version, and leases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column and the table; stored versions get empty metrics."""
    op.add_column("versions", sa.Column("metrics", sa.JSON, nullable=False, server_default="{}"))
    op.create_table(
        "leases",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("expires", sa.Float(53), nullable=False),
    )
