"""The log of one party, from its kit. Does not import FLARE."""

from __future__ import annotations

from pathlib import Path

from ifedicl.errors import StorageError

_LOG = "log.txt"


def last_lines(kit: Path, count: int) -> list[str]:
    """The last lines of the party's log and of its newest job's.

    Raises:
        StorageError: there is no log, or it cannot be read.
    """
    jobs = sorted(kit.glob(f"*/{_LOG}"), key=lambda path: path.stat().st_mtime)
    logs = [path for path in (kit / _LOG, *jobs[-1:]) if path.is_file()]
    if not logs:
        raise StorageError(f"{kit}: there is no log. Start the kit's party first, or name another kit")
    lines: list[str] = []
    for path in logs:
        try:
            lines += [f"== {path.relative_to(kit)}", *path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]]
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    return lines
