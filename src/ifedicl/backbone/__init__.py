"""The frozen model: loading, reading and changing its writes, scoring label words. Only this room uses transformers."""
