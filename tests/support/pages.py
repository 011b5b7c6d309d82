"""The commands and files of a page of the documents, in its order."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import output_of

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^(?:<!-- (?P<who>[^>]*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        who: the remark before it, which readers do not see: who runs it.
        kind: ``bash``, ``toml`` and so on.
        text: its lines.
    """

    who: str
    kind: str
    text: str

    @property
    def file(self) -> str | None:
        """The name in a first line such as ``# config.toml``."""
        first = self.text.splitlines()[0]
        return first.removeprefix("# ") if self.kind == "toml" and first.startswith("# ") else None


def blocks_of(page: str) -> Iterator[Block]:
    """All fenced blocks of a page below the repository's root."""
    for match in _BLOCK.finditer((ROOT / page).read_text()):
        yield Block(match["who"] or "", match["kind"], match["text"])


def console_lines(page: str, heading: str) -> list[str]:
    """The commands behind ``$`` below a heading of a page, without remarks, up to the next heading of that level."""
    text = (ROOT / page).read_text().split(f"\n{heading}\n")[1]
    level = heading.split()[0]
    text = text.split(f"\n{level} ")[0]
    return [line.removeprefix("$ ").split("  #")[0].rstrip() for line in text.splitlines() if line.startswith("$ ")]


def run_block(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the lines of a ``bash`` block in a folder, within this process, and return what they print.

    A line is an ``export`` or a command of ``ifedicl``; remarks behind ``#`` do not count. Each command must succeed.
    """
    monkeypatch.chdir(folder)
    printed = ""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, os.path.expandvars(value))
        else:
            assert words[0] == "ifedicl", line
            printed += output_of(*words[1:])
    return printed
