"""The files that an owner keeps beside its ``client.toml``: the secret, the ledger, and the jobs it has approved.

Once a ledger exists, the secret's file says so. Then a ledger that is missing is found at the next start: limits cannot come
back because a file was deleted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from ifedicl import files
from ifedicl.errors import ConfigError, Fault, LedgerError, StorageError
from ifedicl.federation.client_keys import key_for
from ifedicl.ledger.entries import now
from ifedicl.ledger.ledger import read
from ifedicl.ledger.usage import CountedLedger
from ifedicl.owner.policy import LedgerSettings

_SECRET_BYTES = 32
_HAS_LEDGER = b"L"
"""After the secret's bytes: a ledger exists."""
_FORMAT = 1


def secret_of(settings: LedgerSettings) -> bytes:
    """The owner's key, created at the first start. With another key, earlier cursors are void.

    Raises:
        ConfigError: the file is not a key.
        StorageError: it cannot be written.
    """
    return _read_secret(Path(settings.secret))[0]


def split_key_of(settings: LedgerSettings) -> bytes:
    """The key that divides the owner's examples into roles, and orders them, the same for all jobs.

    Raises:
        ConfigError: the secret's file is not a key.
    """
    return key_for(secret_of(settings), "split")


def open_ledger(settings: LedgerSettings, name: str) -> CountedLedger:
    """Open the ledger of the client ``name``, or make the first one.

    Raises:
        LedgerError: there was a ledger and it is missing, or a line was changed.
        StorageError: a file cannot be read or written.
    """
    path, secret_file = Path(settings.file), Path(settings.secret)
    secret, has_ledger = _read_secret(secret_file)
    if has_ledger and not path.exists():
        raise LedgerError(
            f"ledger.file: {path} is missing, and {secret_file} says that it existed. Nothing is answered without it, because "
            "limits and ε are counted by it. Restore the newest copy: ifedicl ledger restore COPY. If there is none: ifedicl "
            "ledger forget"
        )
    ledger = CountedLedger(path, name)
    if not has_ledger:
        files.write_bytes(secret_file, secret + _HAS_LEDGER, private=True)
    return ledger


def restore_ledger(settings: LedgerSettings, copy: Path) -> int:
    """Put a copy of the ledger in its place, and return its number of lines.

    Raises:
        LedgerError: a line of the copy was changed, or the ledger that is there has lines that the copy lacks.
        StorageError: a file cannot be read or written.
    """
    path, (entries, torn) = Path(settings.file), read(copy)
    if path.exists():
        present, _ = read(path)
        if [entry.digest for entry in present] != [entry.digest for entry in entries[: len(present)]]:
            raise LedgerError(
                f"{copy}: received a copy that does not continue {path}, which has {len(present)} lines. Only a newer copy "
                "of the same ledger can take its place"
            )
    files.write_bytes(path, b"".join(entry.line + b"\n" for entry in entries) + torn, private=True)
    secret, has_ledger = _read_secret(Path(settings.secret))
    if not has_ledger:
        files.write_bytes(Path(settings.secret), secret + _HAS_LEDGER, private=True)
    return len(entries)


def forget_ledger(settings: LedgerSettings) -> Path | None:
    """Let the next start make a new ledger. A ledger that is there is kept under another name, which is returned.

    Raises:
        StorageError: a file cannot be written.
    """
    path, secret_file = Path(settings.file), Path(settings.secret)
    kept = None
    if path.exists():
        kept = path.with_name(f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%S}")
        with files.disk_faults_named(path):
            path.rename(kept)
    secret, _ = _read_secret(secret_file)
    files.write_bytes(secret_file, secret, private=True)
    return kept


def approved_jobs(settings: LedgerSettings) -> Collection[str]:
    """The digests of the approved jobs.

    Raises:
        StorageError: the file cannot be read.
    """
    return _read_approved(Path(settings.approved)).keys()


def approve_job(settings: LedgerSettings, digest: str) -> None:
    """Pin a job by its digest.

    Raises:
        StorageError: the file cannot be read or written.
    """
    path = Path(settings.approved)
    files.write_json(path, {"format": _FORMAT, "jobs": _read_approved(path) | {digest: now()}})


def _read_approved(path: Path) -> dict[str, str]:
    """Approved jobs: the time by digest."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']}, not {_FORMAT}")
        return {str(digest): str(time) for digest, time in values["jobs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StorageError(
            f"ledger.approved: {path} is not a file of approved jobs ({error}). Remove it and approve again"
        ) from error


def _read_secret(path: Path) -> tuple[bytes, bool]:
    """The key, and whether a ledger exists."""
    if not path.exists():
        files.write_bytes(path, secrets.token_bytes(_SECRET_BYTES), private=True)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read the secret {path}: {error.strerror}") from error
    secret, mark = content[:_SECRET_BYTES], content[_SECRET_BYTES:]
    if len(secret) != _SECRET_BYTES or mark not in (b"", _HAS_LEDGER):
        remedy = "Restore it from a copy, or remove it: peers must then pin the new one, and all text counts as not sent."
        raise ConfigError(str(path), [Fault("ledger.secret", f"{len(content)} bytes", f"{_SECRET_BYTES} bytes", remedy)])
    return secret, mark == _HAS_LEDGER
