"""An owner's record of what left: a file of JSON lines, each chained to the one before, that is only ever appended to.

A line is on the disk before what it tells of leaves. What a crash tore off is quoted in a line of its own at the next start.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ifedicl import files
from ifedicl.errors import LedgerError, StorageError
from ifedicl.ledger.entries import START, Entry, Head

OPENED, REPLY, SUMMED, REPAIRED = "opened", "reply", "summed", "repaired"
"""Events: the first line; a reply that was let out; one that went into a secure sum; a torn line that a start found."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Ledger:
    """A ledger that is written to. One process writes at a time; a second one is found out at its first line."""

    def __init__(self, path: Path, owner: str, *, clock: Callable[[], str] = _now) -> None:
        """Open the file, or begin one.

        Args:
            path: the file.
            owner: how the federation knows this client.
            clock: gives the time of a line.

        Raises:
            LedgerError: a line was changed, or it is another owner's.
            StorageError: it cannot be read or written.
        """
        self.path = path
        self._clock = clock
        if path.exists():
            entries, torn = read(path)
            if (other := entries[0].facts["owner"]) != owner:
                raise LedgerError(f"{path} is the ledger of {other!r}, not of {owner!r}; name another file")
        else:
            # The nonce makes two ledgers differ from their first line on.
            facts = {"owner": owner, "nonce": secrets.token_hex(16)}
            entries, torn = [Entry(1, clock(), OPENED, facts, START)], b""
            self._rewrite(entries)
        if torn:
            entries.append(self._next(entries[-1], REPAIRED, _torn_facts(torn)))
            self._rewrite(entries)
        self._last = entries[-1]
        self._digests = [entry.digest for entry in entries]
        self._size = path.stat().st_size

    @property
    def head(self) -> Head:
        """Of the last entry."""
        return self._last.head

    def knows(self, head: Head) -> bool:
        """Whether this ledger had that head once, or has it now."""
        return head.entries <= len(self._digests) and self._digests[head.entries - 1] == head.digest

    def __iter__(self) -> Iterator[Entry]:
        return iter(read(self.path)[0])

    def append(self, event: str, facts: Mapping[str, Any]) -> Head:
        """Write one line; it is on the disk when this returns.

        Raises:
            StorageError: it could not be written, and is not there.
        """
        entry = self._next(self._last, event, facts)
        line = entry.line + b"\n"
        files.append(self.path, line, at=self._size)
        self._last = entry
        self._digests.append(entry.digest)
        self._size += len(line)
        return entry.head

    def _next(self, last: Entry, event: str, facts: Mapping[str, Any]) -> Entry:
        return Entry(last.number + 1, self._clock(), event, facts, last.digest)

    def _rewrite(self, entries: list[Entry]) -> None:
        """At a start only, and atomically: what was torn off stays readable until the line that quotes it is there."""
        files.write_bytes(self.path, b"".join(entry.line + b"\n" for entry in entries), private=True)


def read(path: Path) -> tuple[list[Entry], bytes]:
    """All entries, and what a crash left behind the last of them: a piece of a line, of something that never left.

    Raises:
        LedgerError: a line was changed, moved, added or taken out.
        StorageError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read the ledger {path}: {error.strerror}") from error
    lines, torn = files.whole_lines(data)
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = Entry.read(line)
            if (entry.number, entry.previous) != (number, entries[-1].digest if entries else START):
                raise ValueError("it does not follow from the line before")
            if (entry.event == OPENED) != (number == 1):
                raise ValueError("a ledger is opened once, in its first line")
            if entry.event == OPENED and not isinstance(entry.facts.get("owner"), str):
                raise ValueError("it does not say whose ledger this is")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise LedgerError(f"{path}, line {number}: {error}. The lines before it are whole; this one was changed") from error
        entries.append(entry)
    if not entries:
        raise LedgerError(f"{path} holds no whole line; a ledger has one from its first moment on")
    return entries, torn


def _torn_facts(torn: bytes) -> dict[str, Any]:
    return {"torn": torn.decode("utf-8", "backslashreplace"), "bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
