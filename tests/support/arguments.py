"""Command lines that stand in pages and files, checked by the commands themselves without running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from ifedicl import cli


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """What a command line of ``ifedicl`` says, as the command's parameters; a wrong one raises typer's usage error."""
    command: Any = typer.main.get_command(cli.app)
    context, rest = command.make_context("ifedicl", list(words[:1])), list(words)
    while hasattr(command, "get_command"):
        command = command.get_command(context, rest[0])
        assert command is not None, f"no command {rest[0]!r}"
        context, rest = (
            command.make_context(rest[0], rest[1:] if not hasattr(command, "get_command") else rest[1:2], parent=context),
            rest[1:],
        )
    return dict(context.params)
