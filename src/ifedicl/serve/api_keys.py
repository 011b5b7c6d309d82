"""API keys in a file: one name and one hash a line. A key is shown once, when it is made, and stored nowhere."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from ifedicl import files
from ifedicl.errors import ServeError

_PREFIX = "ifk_"
_LINE = re.compile(r"(?P<name>[\w.@-]{1,64})\s+(?P<hash>[0-9a-f]{64})")


def _hash(key: str) -> str:
    # A key is 256 random bits, so one round of SHA-256 is enough; slow hashes are for passwords that people choose.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Keys:
    """The keys of one server. Added or removed lines take effect at the next :meth:`refresh`."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ServeError: it cannot be read, or a line is not a name and a hash.
        """
        self._path = path
        self._hashes: Mapping[str, str] | None = _read(path)
        if not self._hashes:
            raise ServeError(f"{path}: holds no key, so every request would be refused. Make one: ifedicl key {path} NAME")

    def refresh(self) -> None:
        """Read the file again.

        Raises:
            ServeError: the file cannot be read. All keys are refused until it can, since a withdrawn key must not stay valid.
        """
        try:
            self._hashes = _read(self._path)
        except BaseException:
            self._hashes = None
            raise

    @property
    def are_known(self) -> bool:
        """Whether the last read of the file succeeded."""
        return self._hashes is not None

    def holder(self, key: str) -> str | None:
        """The name of a key's holder; None: the key is unknown.

        The time does not depend on how much of a key is right: all hashes are compared, each in constant time.
        """
        hashed, found = _hash(key), None
        for name, known in (self._hashes or {}).items():
            if hmac.compare_digest(hashed, known):
                found = name
        return found


def new_key(path: Path, name: str) -> str:
    """Make a key for a holder, add its hash to the file (created if absent, readable by its owner alone), and return the key.

    Raises:
        ServeError: the name is taken or has characters that are not allowed; the file cannot be read.
        StorageError: the file cannot be written.
    """
    hashes = _read(path) if path.exists() else {}
    if name in hashes:
        raise ServeError(f"{path}: has a key for {name!r} already. Remove its line to withdraw it, or choose another name")
    key = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {_hash(key)}"
    if not _LINE.fullmatch(line):
        raise ServeError(f"name: received {name!r}; allowed: 1 to 64 letters, digits, and . _ @ -")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    gap = "\n" if before and not before.endswith("\n") else ""
    files.write_bytes(path, f"{before}{gap}{line}\n".encode(), private=True)
    return key


def _read(path: Path) -> dict[str, str]:
    """Hashes by name."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"{path}: the keys cannot be read ({error}). Make the first one: ifedicl key {path} NAME") from error
    hashes = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ServeError(f"{path}: line {number} is not a name and a SHA-256 in hex, as `ifedicl key` writes them")
        hashes[match["name"]] = match["hash"]
    return hashes
