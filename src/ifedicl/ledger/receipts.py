"""The coordinator's file of the ledger heads that came with the clients' replies.

A client's ledger is checked against it, so an owner cannot rewrite the ledger unnoticed. The client's lines state the last head
that the coordinator acknowledged, so the coordinator cannot rewrite its file unnoticed either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ifedicl import files
from ifedicl.errors import LedgerError, StorageError
from ifedicl.ledger.entries import Entry, Head, canonical_json, now
from ifedicl.ledger.ledger import OPENED


@dataclass(frozen=True)
class Receipt:
    """What came with a reply: the head of the client's ledger, with the reply's line, and the frame's hex SHA-256."""

    head: Head
    sha256: str


@dataclass(frozen=True)
class Received:
    """A reply that the coordinator received, the ledger head that came with it, and what it answers.

    ``sha256`` is of the reply's frame, ``run`` a digest, ``step`` the kind of the request, ``round`` the number of completed
    rounds.
    """

    client: str
    head: Head
    sha256: str
    run: str
    step: str
    round: int


class HeadLog:
    """An append-only file of :class:`Received`. Without a path nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._size: int | None = None

    def note(self, replies: Sequence[Received]) -> None:
        """Write one line for each reply, durably.

        Raises:
            StorageError: they could not be written.
        """
        if self._path is None or not replies:
            return
        if self._size is None:
            self._size = _repaired_size(self._path)
        time = now()
        # Not asdict, which copies every field: a line for each client and round is a third of a coordinator's work.
        lines = (canonical_json({"time": time, **vars(reply), "head": vars(reply.head)}) for reply in replies)
        data = b"".join(line + b"\n" for line in lines)
        files.append(self._path, data, at=self._size)
        self._size += len(data)


def read_heads(path: Path) -> list[Received]:
    """The replies that a :class:`HeadLog` wrote.

    Raises:
        LedgerError: a line is no such reply.
        StorageError: the file cannot be read.
    """
    received = []
    try:
        lines, _ = files.whole_lines(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read the heads {path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            if "torn" not in values:
                del values["time"]
                received.append(Received(**{**values, "head": Head(**values["head"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise LedgerError(f"{path}, line {number}: not a reply that a coordinator noted ({error})") from error
    return received


def check_heads(entries: Sequence[Entry], heads: Sequence[Received]) -> tuple[int, int]:
    """Compare a client's ledger with the coordinator's file.

    Args:
        entries: of a ledger whose chain is intact.
        heads: of all clients.

    Returns:
        The number of heads of this client, and the number of its last entries that the coordinator never received.

    Raises:
        LedgerError: the two contradict each other.
    """
    assert entries[0].event == OPENED
    owner = entries[0].facts["owner"]
    receipts = [item for item in heads if item.client == owner]
    for item in receipts:
        number = item.head.entries
        if number > len(entries):
            raise LedgerError(
                f"ledger of {owner}: it ends at entry {len(entries)}, and the coordinator received entry {number}: it was cut"
            )
        entry = entries[number - 1]
        if entry.digest != item.head.digest:
            raise LedgerError(
                f"ledger of {owner}: entry {number} is not the one that the coordinator received: one of them was rewritten"
            )
        if entry.facts.get("sha256") != item.sha256:
            raise LedgerError(f"ledger of {owner}: entry {number} is of another reply than the coordinator received")
    numbers = {item.head.entries for item in receipts}
    for entry in entries:
        acknowledged = entry.facts.get("held", 0)
        if receipts and acknowledged and acknowledged not in numbers:
            raise LedgerError(
                f"coordinator's heads: entry {acknowledged} of {owner} was acknowledged and is missing: the file was cut"
            )
    return len(receipts), len(entries) - max(numbers, default=0)


def _repaired_size(path: Path) -> int:
    """The file's size, after an incomplete last line is quoted in a new one."""
    lines, torn = files.whole_lines(path.read_bytes()) if path.exists() else ([], b"")
    if torn or not path.exists():
        quoted = [canonical_json({"torn": torn.decode("utf-8", "backslashreplace")})] if torn else []
        files.write_bytes(path, b"".join(line + b"\n" for line in [*lines, *quoted]), private=True)
    return path.stat().st_size
