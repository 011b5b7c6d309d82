"""Command lines that stand in pages and files, checked by the commands themselves without running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from ifedicl import cli


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """What a command line of ``ifedicl`` says, as the command's parameters; a wrong one raises typer's usage error."""
    command: Any = typer.main.get_command(cli.app)
    name, rest, context = "ifedicl", list(words), None
    while hasattr(command, "resolve_command"):  # a group
        context = typer.Context(command, parent=context)
        name, command, rest = command.resolve_command(context, rest)
    return dict(command.make_context(name, rest, parent=context).params)
