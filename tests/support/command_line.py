"""Commands of ``ifedicl`` within the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ifedicl import cli


def run(*arguments: str | Path) -> int:
    """The exit code of a command."""
    try:
        cli.main([*map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """What a command that succeeds prints as JSON."""
    capsys.readouterr()
    assert run(*arguments) == 0
    return json.loads(capsys.readouterr().out)
