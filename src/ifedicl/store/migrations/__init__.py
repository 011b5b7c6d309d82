"""Migrations of the tables from release to release; Alembic runs them when a store is opened."""
