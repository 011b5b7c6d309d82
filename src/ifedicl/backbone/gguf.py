"""GGUF files, whole or in parts: converted to safetensors once and cached under the digest of the GGUF file."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from safetensors import SafetensorError

from ifedicl import files
from ifedicl.backbone.fingerprint import cached_digest
from ifedicl.errors import BackboneError, StorageError

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_SPLIT = "split."  # the metadata that llama.cpp gives to parts


def parts_of(file: Path) -> tuple[Path, ...]:
    """All parts of the model of which ``file`` is one, in order; a file that is no part is the only one.

    Raises:
        BackboneError: a file is absent.
    """
    match = _PART.fullmatch(file.name)
    count = 1 if match is None else int(match["count"])
    if match is None or count < 2:
        parts: tuple[Path, ...] = (file,)
    else:
        parts = tuple(
            file.with_name(f"{match['stem']}-{number:05d}-of-{match['count']}.gguf") for number in range(1, count + 1)
        )
    missing = [part.name for part in parts if not part.is_file()]
    if missing and len(parts) == 1:
        raise BackboneError(f"{file}: there is no such GGUF file. Check model.source")
    if missing:
        raise BackboneError(
            f"{file}: received one of {count} parts; {len(missing)} are not in its folder: {', '.join(missing[:3])}. Put all "
            "parts into one folder, and name any of them as model.source"
        )
    return parts


def fingerprint_of(file: Path) -> str:
    """Hex SHA-256 of the file, which holds weights and tokenizer; its quantisation is part of the model.

    Of a model in parts: the SHA-256 of their digests, in order.
    """
    parts = parts_of(file)
    if len(parts) == 1:
        return cached_digest([file], lambda: files.sha256_of(file))
    return cached_digest(list(parts), lambda: hashlib.sha256("".join(map(files.sha256_of, parts)).encode()).hexdigest())


def converted_folder(file: Path, cache: Path | None = None) -> Path:
    """The folder with this GGUF file's weights as float32 safetensors; the first call writes it.

    Float32 holds every dequantised weight exactly; half precision does not.

    Raises:
        BackboneError: the file is absent or torn, transformers cannot read its architecture from GGUF, or a package is missing.
        StorageError: the cache cannot be written.
    """
    parts = parts_of(file)
    folder = (cache or user_cache_path("ifedicl")) / "gguf" / fingerprint_of(file)
    if folder.is_dir():
        return folder
    _convert(file, parts, folder)
    return folder


def _convert(file: Path, parts: Sequence[Path], folder: Path) -> None:
    """Write the float32 copy. What it needs takes seconds to import, and it is written once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ifedicl.backbone.preflight import check_memory, refuse_missing
    from ifedicl.backbone.quiet import quiet_transformers

    elements = _elements(parts)
    check_memory(elements, torch.float32, torch.device("cpu"), str(file))
    try:
        # The converter draws a progress bar that no setting switches off; callers show their own.
        with _whole(parts, folder.parent) as whole, redirect_stderr(io.StringIO()), quiet_transformers():
            location = {"pretrained_model_name_or_path": str(whole.parent), "gguf_file": whole.name}
            model, info = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(**location)
    except StorageError:
        raise
    except Exception as error:  # torn files raise struct, numpy and tokenizer errors
        raise BackboneError(
            f"{file}: cannot be read as GGUF ({error}); it may be torn, or of an unknown architecture"
        ) from error
    refuse_missing(info["missing_keys"], str(file))
    # The loader marks the model as quantised, which it no longer is; saving would refuse it.
    model.hf_quantizer = None
    del model.quantization_method, model.is_quantized, model.config.quantization_config
    with files.new_folder(folder, mark="config.json") as temporary:
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        except SafetensorError as error:
            needed = elements * torch.float32.itemsize >> 20
            raise StorageError(
                f"cannot write {folder}: {error}. The float32 copy needs {needed:,} MiB; free some space"
            ) from error


@contextmanager
def _whole(parts: Sequence[Path], place: Path) -> Iterator[Path]:
    """One file with all tensors: the only part, or a temporary file below ``place``, since transformers reads no parts."""
    if len(parts) == 1:
        yield parts[0]
        return
    with files.disk_faults_named(place):
        place.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=place, prefix=".parts-")
    with folder as name:
        whole = Path(name) / "whole.gguf"
        with files.disk_faults_named(place):
            _join(parts, whole)
        yield whole


def _join(parts: Sequence[Path], whole: Path) -> None:
    """Write the metadata of the first part and the tensors of all parts to one file."""
    from gguf import GGUFValueType, GGUFWriter

    readers = [_reader(part) for part in parts]
    fields = readers[0].fields
    writer = GGUFWriter(whole, readers[0].get_field("general.architecture").contents(), endianess=readers[0].endianess)
    for name, field in fields.items():
        if name.startswith((_SPLIT, "GGUF.")) or name == "general.architecture":  # the writer adds these itself
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data, tensor_endianess=readers[0].endianess)
    writer.close()


def _elements(parts: Sequence[Path]) -> int:
    """The number of elements of all tensors, from the headers alone."""
    _require_packages(parts[0])
    readers = [_reader(part) for part in parts]
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    count, told = (readers[0].get_field(f"{_SPLIT}{name}") for name in ("count", "tensors.count"))
    if count is not None and int(count.contents()) not in (0, len(parts)):
        raise BackboneError(
            f"{parts[0]}: it is one of {int(count.contents())} parts by its header, but its name is not that of a part; "
            "allowed: NAME-00001-of-00003.gguf, for instance, with all parts in one folder. Give the files their names back"
        )
    if told is not None and int(told.contents()) != len(tensors):
        raise BackboneError(
            f"{parts[0]}: its parts hold {len(tensors)} tensors; allowed: the {int(told.contents())} that its header tells. A "
            "part is of another model; download the parts again"
        )
    return sum(int(tensor.n_elements) for tensor in tensors)


def licence_of(file: Path) -> str | None:
    """The licence that the file names.

    Raises:
        BackboneError: the file is absent or torn, or a package is missing.
    """
    first = parts_of(file)[0]
    _require_packages(first)
    found = _reader(first).get_field("general.license")
    return None if found is None else str(found.contents())


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except Exception as error:  # torn files raise struct, numpy and index errors
        raise BackboneError(f"{file}: cannot be read as GGUF ({error}); it may be torn. Download it again") from error


def _require_packages(file: Path) -> None:
    """Check that the extra ``gguf`` is installed: the reader, and accelerate, which transformers needs to load the file."""
    if missing := [name for name in ("accelerate", "gguf") if find_spec(name) is None]:
        raise BackboneError(
            f"{file}: GGUF files need packages that are not installed ({', '.join(missing)}): pip install 'ifedicl[gguf]'"
        )
