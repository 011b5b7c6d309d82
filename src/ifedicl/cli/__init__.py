"""The command line."""

from ifedicl.cli.commands import app, main

__all__ = ["app", "main"]
