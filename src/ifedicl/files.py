"""Atomic writes, and disk faults as errors with a remedy.

A reader never sees a half-written file: bytes are written to a temporary file in the same folder, flushed to the disk, and
renamed in one step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from io import FileIO
from pathlib import Path
from typing import Any

from ifedicl.errors import StorageError

_CHUNK = 1 << 22


@contextmanager
def disk_faults_named(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of a write below ``path`` into a :class:`StorageError` with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full or the quota is used up. Free some space. Earlier files are intact."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "no permission to write there. Choose a folder of your own, or change its permissions."
        elif (obstacle := _obstacle(path)) is not None:
            remedy = obstacle
        else:
            remedy = f"{os.strerror(error.errno) if error.errno else error}. Earlier files are intact."
        raise StorageError(f"cannot write {path}: {remedy}") from error


def _obstacle(path: Path) -> str | None:
    """What stands where a folder above ``path`` should be, with a remedy; None: nothing does."""
    for place in (path.absolute(), *path.absolute().parents):
        if place.is_symlink() and not os.path.exists(place):  # noqa: PTH110 - links that lead in a circle exist for nobody
            return f"{place} is a link to {place.readlink()}, which does not exist. Make that folder, or choose another."
        if place != path.absolute() and os.path.exists(place):  # noqa: PTH110
            return None if place.is_dir() else f"{place} is a file. Choose a folder."
    return None


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` to ``path`` atomically and durably; parent folders are created. Others cannot read a ``private`` file.

    Raises:
        StorageError: no space, no permission, or another disk fault. An older file of that name does not change.
    """
    with disk_faults_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile, whose files only their owner can read: another user than the one who wrote an adapter may serve it.
        temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
        mode = 0o600 if private else 0o666
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Append ``text`` to ``path``; after a crash the last line may be torn.

    Raises:
        StorageError: no space, no permission, or another disk fault.
    """
    with disk_faults_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            _write_all(file, text.encode())


def write_json(path: Path, value: Any) -> None:
    """:func:`write_bytes` of indented JSON; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append(path: Path, data: bytes, *, at: int) -> None:
    """Append ``data`` durably to a file of ``at`` bytes. If the machine crashes meanwhile, a part may be written.

    Raises:
        StorageError: the file has another size, since another process has written to it; or a disk fault, after which it has
            ``at`` bytes.
    """
    with disk_faults_named(path), path.open("r+b", buffering=0) as file:
        if (size := file.seek(0, os.SEEK_END)) != at:
            raise StorageError(f"cannot write {path}: it has {size} bytes, not {at}. Another process has written to it")
        try:
            _write_all(file, data)
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), at)
            raise


def _write_all(file: FileIO, data: bytes) -> None:
    """Write to an unbuffered file: a buffer would write what a full disk refused later, when the file is closed."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def whole_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a file that is only appended to, without newlines, and the bytes behind the last newline."""
    *lines, torn = data.split(b"\n")
    return lines, torn


@contextmanager
def new_folder(path: Path, *, mark: str) -> Iterator[Path]:
    """A folder that appears under its name only if the block succeeds. Its files can be read as the umask says.

    Yields a temporary folder beside it to fill. On success it replaces ``path``; on failure nothing is left.

    Args:
        path: the folder.
        mark: a file that every such folder holds; a folder without it is never replaced.

    Raises:
        StorageError: ``path`` is something else; no space, no permission, or another disk fault.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / mark).is_file()):
        raise StorageError(f"cannot write {path}: it is something else (it holds no {mark}). Choose another folder")
    with disk_faults_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
        temporary.mkdir()  # unlike tempfile's, with the mode that the umask gives
        try:
            yield temporary
            mode = temporary.stat().st_mode & 0o666
            for file in temporary.rglob("*"):
                if file.is_file():  # some libraries write files that only their owner can read
                    file.chmod(mode)
            if path.exists():
                aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
                os.replace(path, aside / "old")
                try:
                    os.replace(temporary, path)
                except BaseException:
                    os.replace(aside / "old", path)
                    aside.rmdir()
                    raise
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def template(name: str, **values: str) -> str:
    """The shipped template ``name``, with ``@key@`` replaced by each value."""
    text = (resources.files("ifedicl") / "templates" / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
