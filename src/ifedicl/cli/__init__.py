"""The command line."""

from ifedicl.cli.app import app, main

__all__ = ["app", "main"]
