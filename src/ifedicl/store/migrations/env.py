"""Alembic runs this file; the connection and its transaction are the store's."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
