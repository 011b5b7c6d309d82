"""One run in a folder at a time: a lock that the system frees when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ifedicl import files
from ifedicl.errors import ConfigError, Fault

NAME = ".lock"
"""The file that is locked. It holds who holds the lock, and is gone when nobody does."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LARGEST = 4096
_TRIES = 100
"""Most times in a row that the folder may be gone before it is locked. More is no holder that ends: it cannot be made."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder`` while the block runs; the folder is made if it does not exist.

    On a file system without locks nothing is held.

    Raises:
        ConfigError: another process, or another thread of this one, runs in the folder.
        StorageError: the folder cannot be written.
    """
    is_new = not folder.exists()
    descriptor = _taken(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # before the lock is freed: afterwards the file may be another's
                (folder / NAME).unlink()
            os.close(descriptor)
        if is_new:
            with contextlib.suppress(OSError):  # a run that failed at once leaves nothing
                folder.rmdir()


def _taken(folder: Path) -> int | None:
    """The descriptor of the locked file; None where the file system has no locks."""
    file = folder / NAME
    gone = 0
    while True:
        with files.disk_faults_named(file):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            except (FileNotFoundError, FileExistsError):  # a holder that made the folder removed it
                gone += 1
                if folder.is_file() or gone == _TRIES:
                    raise
                continue
        gone = 0
        try:
            try:
                _lock(descriptor)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    os.close(descriptor)
                    return None
                raise _busy(folder, descriptor) from error
            if _is_same(descriptor, file):
                note = {"pid": os.getpid(), "host": platform.node(), "program": _program(), "since": time.time()}
                with files.disk_faults_named(file):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps(note).encode())
                return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed the file between open and lock


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        import msvcrt

        os.lseek(descriptor, _LARGEST, os.SEEK_SET)  # others can read what is before it
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:

    def _lock(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _program() -> str:
    return Path(sys.argv[0]).name or "python" if sys.argv else "python"


def _busy(folder: Path, descriptor: int) -> ConfigError:
    holder = _holder(descriptor)
    since = f" since {time.strftime('%H:%M on %d %b %Y', time.localtime(holder['since']))}" if "since" in holder else ""
    who = (
        f"{holder.get('program', 'a program')}, process {holder.get('pid', 'unknown')} on {holder.get('host', 'this machine')}"
    )
    remedy = "Wait until it ends, or choose another folder. A process that was killed holds nothing."
    return ConfigError(
        "run", [Fault("out", f"{folder}, in which {who} runs{since}", "a folder in which no run is going on", remedy)]
    )


def _holder(descriptor: int) -> dict[str, Any]:
    """What the holder wrote; empty while it is writing."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        value = json.loads(os.read(descriptor, _LARGEST))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("since", 0.0), float) else {}
