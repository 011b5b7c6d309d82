"""Secure sums over any engine: a door before each client, and an engine around the one that carries the messages."""
