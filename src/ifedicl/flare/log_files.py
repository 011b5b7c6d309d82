"""The log of one party, from its kit. Does not import FLARE."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from ifedicl.errors import StorageError

LOG = "log.txt"
"""FLARE's log, of a party and of each of its jobs."""
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (?P<logger>\S+) - [A-Z]+ - ")


def last_lines(kit: Path, count: int, *, everything: bool) -> list[str]:
    """The last lines of the party's log and of its newest job's.

    Args:
        kit: the party's.
        count: the number of lines of each.
        everything: FLARE's own lines too, not only ours.

    Raises:
        StorageError: there is no log, or it cannot be read.
    """
    jobs = sorted(kit.glob(f"*/{LOG}"), key=lambda path: path.stat().st_mtime)
    logs = [path for path in (kit / LOG, *jobs[-1:]) if path.is_file()]
    if not logs:
        raise StorageError(f"{kit}: there is no log. Start the kit's party first, or name another kit")
    lines: list[str] = []
    for path in logs:
        shown = lines_of(path) if everything else list(own_lines(lines_of(path)))
        lines += [f"== {path.relative_to(kit)}", *shown[-count:]]
    if not everything:
        lines.append("these are the lines of ifedicl; --all also shows FLARE's")
    return lines


def lines_of(path: Path) -> list[str]:
    """The lines of a log.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error


def own_lines(lines: Iterable[str]) -> Iterator[str]:
    """The records of ifedicl, with their tracebacks; not what FLARE says about its own work.

    FLARE writes the last part of a logger's name, which for us is that of a module.
    """
    modules = {path.stem for path in Path(str(resources.files("ifedicl"))).rglob("*.py")}
    is_ours = False
    for line in lines:
        record = _RECORD.match(line)
        if record is not None:
            is_ours = record["logger"] in modules
        if is_ours:
            yield line
