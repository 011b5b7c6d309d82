"""Lines that cannot be changed unseen: each names the SHA-256 of the one before it. No torch, no messages.

What is hashed is the line's own JSON (sorted keys, no spaces), so whoever has a line can compute its digest with any tool.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

START = "0" * 64
"""What the first entry names as the one before it."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST = 2**53
_OWN = ("n", "time", "event", "previous", "hash")


@dataclass(frozen=True)
class Head:
    """How far a ledger has come. Whoever holds it can tell any other beginning of that ledger from the true one.

    Attributes:
        entries: how many there are.
        digest: of the last one, hex SHA-256.
    """

    entries: int
    digest: str

    def __post_init__(self) -> None:
        if type(self.entries) is not int or not 0 < self.entries < _MOST or not _DIGEST.fullmatch(str(self.digest)):
            raise ValueError(f"entries {self.entries!r} and digest {str(self.digest)[:70]!r} are no head of a ledger")


@dataclass(frozen=True)
class Entry:
    """One line of a ledger.

    Attributes:
        number: 1 for the first.
        time: ISO 8601, UTC.
        event: what happened.
        facts: more of it, as JSON.
        previous: digest of the entry before.
    """

    number: int
    time: str
    event: str
    facts: Mapping[str, Any]
    previous: str

    @classmethod
    def read(cls, line: bytes) -> Self:
        """From :attr:`line`, without the newline.

        Raises:
            ValueError: it is not such a line, or its digest is not its own.
        """
        values = json.loads(line)
        if not isinstance(values, dict) or not set(_OWN) <= set(values):
            raise ValueError(f"not an object with {', '.join(_OWN)}")
        facts = {name: value for name, value in values.items() if name not in _OWN}
        entry = cls(values["n"], values["time"], values["event"], facts, values["previous"])
        if values["hash"] != entry.digest:
            raise ValueError("its hash is not that of its content")
        if entry.line != line:
            raise ValueError("it is not written as a ledger writes")  # spaces, or a key that stands there twice
        return entry

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of all but itself."""
        return hashlib.sha256(_canonical(self._content)).hexdigest()

    @property
    def line(self) -> bytes:
        """As it stands in the file, without the newline."""
        return _canonical({**self._content, "hash": self.digest})

    @property
    def head(self) -> Head:
        """Of the ledger that ends with this entry."""
        return Head(self.number, self.digest)

    @property
    def _content(self) -> dict[str, Any]:
        own = {"n": self.number, "time": self.time, "event": self.event, "previous": self.previous}
        return {**self.facts, **own}


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
