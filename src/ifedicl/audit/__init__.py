"""Attacks on the messages of a client. The owner runs them on its own text before the client sends anything."""
