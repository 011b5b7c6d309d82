"""Coordinator, clients and their messages, over any engine."""
