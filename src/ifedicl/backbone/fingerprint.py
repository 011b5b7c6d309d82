"""The fingerprint of a model: a digest of stored weights and tokenizer. Vectors of different models are never averaged."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from ifedicl import files
from ifedicl.errors import BackboneError, StorageError

SINGLE = "model.safetensors"
"""The weights in one file. transformers prefers it to an index."""
INDEX = "model.safetensors.index.json"
"""Which tensor is in which file."""

# Keys of config.json that do not change what is computed.
_VOLATILE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures"}
_TOKENIZER_SETTINGS = ("chat_template", "add_bos_token", "add_eos_token", "add_prefix_space")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja")
_TOKENIZER_ENDINGS = (".json", ".jinja", ".model", ".txt", ".bpe", ".tiktoken")  # of files that a tokenizer may read
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's entry in a safetensors file; ``start`` and ``end`` are offsets in bytes from the start of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return prod(self.shape)


def stored_tensors(folder: Path) -> tuple[StoredTensor, ...]:
    """Every tensor of a folder's safetensors files, sorted by name.

    Raises:
        BackboneError: a file is torn.
    """
    tensors = [tensor for file in weight_files(folder) for tensor in _header(file)]
    return tuple(sorted(tensors, key=lambda tensor: tensor.name))


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads: ``model.safetensors``, or those of the index; without either, all safetensors files.

    Some repositories hold a second copy of the weights under another name.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = json_object(folder / INDEX).get("weight_map")
    if isinstance(index, dict):
        return [folder / str(name) for name in sorted({str(name) for name in index.values()})]
    return sorted(folder.glob("*.safetensors"))


def fingerprint_of(folder: Path) -> str:
    """Hex SHA-256 of a folder's tensors (names, dtypes, shapes, bytes), tokenizer and the config fields that change results.

    The distribution of tensors over files does not count. What the loaded tokenizer does beyond the hashed files and settings
    counts, too. The result is cached (:func:`cached_digest`).
    """
    weights = [file for file in weight_files(folder) if file.is_file()]
    tokenizer = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]

    def compute() -> str:
        # transformers takes seconds to import, and the digest is mostly known.
        from ifedicl.backbone.quiet import quiet_transformers
        from ifedicl.backbone.tokenizer_facts import unhashed_behaviour

        digest = hashlib.sha256()
        tensors = stored_tensors(folder)
        with ThreadPoolExecutor() as pool:
            for tensor, content in zip(tensors, pool.map(_content_digest, tensors), strict=True):
                digest.update(f"{tensor.name}\x1f{tensor.dtype}\x1f{tensor.shape}\x1f{content}\x1e".encode())
        config, settings = _settings_of(folder)
        digest.update(json.dumps([config, settings], sort_keys=True).encode())
        for file in tokenizer:
            digest.update(f"{file.name}\x1f{files.sha256_of(file)}\x1e".encode())
        with quiet_transformers():
            behaviour = unhashed_behaviour(folder, tokenizer, config, settings)
        if behaviour:
            digest.update(f"tokenizer\x1f{behaviour}\x1e".encode())
        return digest.hexdigest()

    rest = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in _TOKENIZER_ENDINGS)
    sources = [*weights, *tokenizer, *(file for file in rest if file not in tokenizer)]
    return cached_digest(sources, compute, version("transformers"))


def cached_digest(sources: list[Path], compute: Callable[[], str], version: str = "") -> str:
    """``compute()``, or its cached result for these files, if nothing has written to them since.

    Size and time of the content do not show that: copying tools set the time. The inode shows that another file took the
    place, and the time of the inode's change, which no tool sets, that this one was written to.

    Args:
        sources: all files that the digest depends on.
        compute: gives 64 hex digits.
        version: of the code that computes it.
    """
    stats = [(str(file.resolve()), *_state(file)) for file in sources]
    key = hashlib.sha256(json.dumps([version, stats]).encode()).hexdigest()
    note = user_cache_path("ifedicl") / "fingerprints" / key
    if note.is_file() and _DIGEST.fullmatch(remembered := note.read_text(encoding="utf-8", errors="replace")):
        return remembered
    value = compute()
    with suppress(StorageError):  # the cache only saves time; if it is not writable, the digest is computed again
        files.write_text(note, value)
    return value


def _state(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def _content_digest(tensor: StoredTensor) -> str:
    with tensor.file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return hashlib.sha256(memoryview(view)[tensor.start : tensor.end]).hexdigest()


def _header(file: Path) -> list[StoredTensor]:
    """Read the header of a safetensors file: 8 bytes of length, then JSON; its offsets count from the end of the header."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        tensors = [
            StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), *(8 + length + at for at in entry["data_offsets"]))
            for name, entry in entries.items()
        ]
        if any(not 8 + length <= tensor.start <= tensor.end for tensor in tensors):
            raise ValueError("an offset points outside of the data")
    except (OSError, struct.error, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError) as error:
        raise BackboneError(f"{file}: not a whole safetensors file ({error}); download the model again") from error
    size, needed = file.stat().st_size, max((tensor.end for tensor in tensors), default=0)
    if needed > size:
        raise BackboneError(f"{file}: cut short at {size:,} of at least {needed:,} bytes; download the model again")
    return tensors


def _settings_of(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of config.json and tokenizer_config.json that change results."""
    config, tokenizer = (json_object(folder / name) for name in ("config.json", "tokenizer_config.json"))
    lasting = {key: value for key, value in config.items() if key not in _VOLATILE}
    return lasting, {key: tokenizer.get(key) for key in _TOKENIZER_SETTINGS}


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, or it cannot be parsed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        value = {}  # loading the model reports what is wrong with the file
    return value if isinstance(value, dict) else {}
