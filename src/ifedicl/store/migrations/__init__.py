"""How the tables of each release become those of the next, run by Alembic when a store is opened."""
