"""A ledger's lines. Each holds the SHA-256 of the line before it, so a later change is found. No torch, no messages.

The digest is of the line's JSON (sorted keys, no spaces): any tool can compute it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self

START = "0" * 64
"""The previous digest that the first entry states."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("n", "time", "event", "previous", "hash")


@dataclass(frozen=True)
class Head:
    """The number of a ledger's entries and the hex SHA-256 of the last one. It commits to every entry up to that one."""

    entries: int
    digest: str

    def __post_init__(self) -> None:
        if type(self.entries) is not int or not 0 < self.entries < 2**53 or not _DIGEST.fullmatch(str(self.digest)):
            raise ValueError(f"ledger head: received entries {self.entries!r}, digest {str(self.digest)[:70]!r}")


@dataclass(frozen=True)
class Entry:
    """One line of a ledger: number (from 1), time, event, further fields, and the digest of the entry before."""

    number: int
    time: str
    event: str
    facts: Mapping[str, Any]
    previous: str

    @classmethod
    def read(cls, line: bytes) -> Self:
        """Parse :attr:`line`.

        Raises:
            ValueError: it is not such a line, or its hash is wrong.
        """
        values = json.loads(line)
        if not isinstance(values, dict) or not set(_FIELDS) <= set(values):
            raise ValueError(f"not an object with {', '.join(_FIELDS)}")
        facts = {name: value for name, value in values.items() if name not in _FIELDS}
        entry = cls(values["n"], values["time"], values["event"], facts, values["previous"])
        if values["hash"] != entry.digest:
            raise ValueError("the hash is not that of the content")
        if entry.line != line:
            raise ValueError("the line is not in canonical JSON")  # spaces, or a key that occurs twice
        return entry

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of all fields except ``hash``."""
        return hashlib.sha256(canonical_json(self._content)).hexdigest()

    @property
    def line(self) -> bytes:
        """The line of the file, without the newline."""
        return canonical_json({**self._content, "hash": self.digest})

    @property
    def head(self) -> Head:
        """The head of a ledger that ends with this entry."""
        return Head(self.number, self.digest)

    @property
    def _content(self) -> dict[str, Any]:
        return {**self.facts, "n": self.number, "time": self.time, "event": self.event, "previous": self.previous}


def now() -> str:
    """The time of a line: ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
