"""Walks through the documents: their own commands, in their order, with real processes."""
