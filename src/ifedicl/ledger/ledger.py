"""An owner's record of sent replies: an append-only file of JSON lines, each chained to the line before it.

A line is on the disk before its reply is sent. A line that a crash left incomplete is quoted in a new line at the next start.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ifedicl import files
from ifedicl.errors import LedgerError, StorageError
from ifedicl.ledger.entries import START, Entry, Head, now

OPENED, REPLY, SUMMED, REPAIRED, REFUSED = "opened", "reply", "summed", "repaired", "refused"
"""Events: the first line; a sent reply; a reply that went into a secure sum; an incomplete line that a start found; how many
requests were refused since the last such line, by code."""


class Ledger:
    """A ledger open for writing. One process writes at a time; the first write of a second process fails."""

    def __init__(self, path: Path, owner: str, *, clock: Callable[[], str] = now) -> None:
        """Open the file, or make one, for the client ``owner``; ``clock`` returns the time of a line.

        Raises:
            LedgerError: a line was changed, or the ledger is another owner's.
            StorageError: the file cannot be read or written.
        """
        self.path = path
        self._clock = clock
        if path.exists():
            entries, torn = read(path)
            if (other := entries[0].facts["owner"]) != owner:
                raise LedgerError(f"{path}: this is the ledger of {other!r}, not of {owner!r}. Name another file")
        else:
            # The nonce makes any two ledgers differ.
            facts = {"owner": owner, "nonce": secrets.token_hex(16)}
            entries, torn = [Entry(1, clock(), OPENED, facts, START)], b""
            self._rewrite(entries)
        if torn:
            quoted = torn.decode("utf-8", "backslashreplace")
            repair = {"torn": quoted, "bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
            entries.append(self._next(entries[-1], REPAIRED, repair))
            self._rewrite(entries)
        self._last = entries[-1]
        self._digests = [entry.digest for entry in entries]
        self._size = path.stat().st_size

    @property
    def head(self) -> Head:
        """The head at the last entry."""
        return self._last.head

    def knows(self, head: Head) -> bool:
        """Whether ``head`` is this ledger's head at any of its entries."""
        return head.entries <= len(self._digests) and self._digests[head.entries - 1] == head.digest

    def __iter__(self) -> Iterator[Entry]:
        return iter(read(self.path)[0])

    def append(self, event: str, facts: Mapping[str, Any]) -> Head:
        """Write one line durably and return the new head.

        Raises:
            StorageError: the line could not be written; the file is unchanged.
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
        """At a start only, and atomically: the incomplete line stays readable until the line that quotes it is on the disk."""
        files.write_bytes(self.path, b"".join(entry.line + b"\n" for entry in entries), private=True)


def read(path: Path) -> tuple[list[Entry], bytes]:
    """All entries, and the bytes of an incomplete line after them, whose reply was never sent.

    Raises:
        LedgerError: a line was changed, moved, added or removed.
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
                raise ValueError("its number or previous digest does not continue the line before")
            if (entry.event == OPENED) != (number == 1):
                raise ValueError(f"only the first line has the event {OPENED!r}")
            if entry.event == OPENED and not isinstance(entry.facts.get("owner"), str):
                raise ValueError("no owner is stated")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise LedgerError(
                f"{path}, line {number}: {error}. The lines before it are intact; this one was changed"
            ) from error
        entries.append(entry)
    if not entries:
        raise LedgerError(f"{path}: no complete line; a ledger has one as soon as it exists")
    return entries, torn
