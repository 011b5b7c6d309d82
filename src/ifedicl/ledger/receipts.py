"""The coordinator's side of the clients' ledgers: a file of the heads that came with their replies.

With it, a client's ledger can be checked for what its owner alone could have rewritten. The client's own lines name the last
head that the coordinator told it, so neither can the coordinator rewrite its file unseen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ifedicl import files
from ifedicl.errors import LedgerError, StorageError
from ifedicl.ledger.entries import Entry, Head
from ifedicl.ledger.ledger import OPENED


@dataclass(frozen=True)
class Receipt:
    """What came with a reply, and shows later that the reply was in the client's ledger.

    Attributes:
        head: of the client's ledger, this reply included.
        sha256: of the reply's frame, hex.
    """

    head: Head
    sha256: str


@dataclass(frozen=True)
class Received:
    """A reply as the coordinator had it.

    Attributes:
        client: its name.
        head: what came with it.
        sha256: of the reply's frame, hex.
        run: digest of the run.
        step: kind of the request.
        round: completed rounds when it was sent.
    """

    client: str
    head: Head
    sha256: str
    run: str
    step: str
    round: int


class HeadLog:
    """Lines of :class:`Received`, only ever appended to. Without a path nothing is written."""

    def __init__(self, path: Path | None) -> None:
        """Prepare; nothing is written yet."""
        self._path = path
        self._size: int | None = None

    def note(self, replies: Sequence[Received]) -> None:
        """Write one line for each; they are on the disk when this returns.

        Raises:
            StorageError: they could not be written.
        """
        if self._path is None or not replies:
            return
        if self._size is None:
            self._size = _ended(self._path)
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        data = b"".join(_line({"time": time, **asdict(reply)}) for reply in replies)
        files.append(self._path, data, at=self._size)
        self._size += len(data)


def read_heads(path: Path) -> list[Received]:
    """What :class:`HeadLog` wrote.

    Raises:
        LedgerError: a line is something else.
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
            raise LedgerError(f"{path}, line {number}: not a head that a coordinator wrote ({error})") from error
    return received


def check_heads(entries: Sequence[Entry], heads: Sequence[Received]) -> tuple[int, int]:
    """Compare a client's ledger with what the coordinator had of it.

    Args:
        entries: of a ledger that is whole in itself.
        heads: of all clients.

    Returns:
        How many heads are of this client, and how many of its last entries the coordinator never had.

    Raises:
        LedgerError: the two do not fit each other.
    """
    opened = entries[0]
    assert opened.event == OPENED
    owner = opened.facts["owner"]
    own = [item for item in heads if item.client == owner]
    for item in own:
        number = item.head.entries
        known = entries[number - 1] if number <= len(entries) else None
        if known is None:
            raise LedgerError(
                f"the coordinator had entry {number} of {owner}, and the ledger ends at {len(entries)}: it was cut"
            )
        if known.digest != item.head.digest:
            raise LedgerError(f"entry {number} of {owner} is not the one that the coordinator had: one of them was rewritten")
        if known.facts.get("sha256") != item.sha256:
            raise LedgerError(f"entry {number} of {owner} tells of another reply than the coordinator had")
    for entry in entries:
        held = entry.facts.get("held", 0)
        if own and held and held not in {item.head.entries for item in own}:
            raise LedgerError(f"the coordinator told {owner} of entry {held}, and its own file does not hold it: that was cut")
    last = max((item.head.entries for item in own), default=0)
    return len(own), len(entries) - last


def _ended(path: Path) -> int:
    """Where the file ends, once a line that a crash tore off is quoted in a whole one."""
    lines, torn = files.whole_lines(path.read_bytes()) if path.exists() else ([], b"")
    if torn or not path.exists():
        quoted = [_line({"torn": torn.decode("utf-8", "backslashreplace")})] if torn else []
        files.write_bytes(path, b"".join([*(line + b"\n" for line in lines), *quoted]), private=True)
    return path.stat().st_size


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"
