"""The version of this ifedicl."""

__version__ = "0.1.0"
