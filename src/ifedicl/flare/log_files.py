"""The log of one party, out of its own kit. Imports nothing of FLARE."""

from __future__ import annotations

from pathlib import Path

from ifedicl.errors import StorageError

_LOG = "log.txt"


def last_lines(kit: Path, count: int) -> list[str]:
    """The last lines of the party's log and of its newest job's.

    Raises:
        StorageError: there is none, or it cannot be read.
    """
    own = kit / _LOG
    jobs = sorted(kit.glob(f"*/{_LOG}"), key=lambda path: path.stat().st_mtime)
    found = [path for path in (own, *jobs[-1:]) if path.is_file()]
    if not found:
        raise StorageError(f"there is no log in {kit}: start its party first, or name another kit")
    lines: list[str] = []
    for path in found:
        try:
            lines += [f"== {path.relative_to(kit)}", *path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]]
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
    return lines
