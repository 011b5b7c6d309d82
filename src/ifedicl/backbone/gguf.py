"""GGUF files: converted to safetensors once and cached under the digest of the GGUF file."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ifedicl import files
from ifedicl.backbone.fingerprint import cached_digest
from ifedicl.backbone.preflight import check_memory, refuse_missing
from ifedicl.errors import BackboneError, StorageError


def fingerprint_of(file: Path) -> str:
    """Hex SHA-256 of the file, which holds weights and tokenizer; its quantisation is part of the model."""
    return cached_digest([file], lambda: files.sha256_of(file))


def converted_folder(file: Path, cache: Path | None = None) -> Path:
    """The folder with this GGUF file's weights as float32 safetensors; the first call writes it.

    Float32 holds every dequantised weight exactly; half precision does not.

    Raises:
        BackboneError: the file is absent or torn, transformers cannot read its architecture from GGUF, or a package is missing.
        StorageError: the cache cannot be written.
    """
    if not file.is_file():
        raise BackboneError(f"{file}: there is no such GGUF file. Check model.source")
    folder = (cache or user_cache_path("ifedicl")) / "gguf" / fingerprint_of(file)
    if folder.is_dir():
        return folder
    elements = _elements(file)
    check_memory(elements, torch.float32, torch.device("cpu"), str(file))
    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        # The converter draws a progress bar that no setting switches off; callers show their own.
        with redirect_stderr(io.StringIO()):
            model, info = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(**location)
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
    return folder


def _elements(file: Path) -> int:
    """The number of elements of the file's tensors, from its header alone."""
    _require_packages(file)
    try:
        return sum(int(tensor.n_elements) for tensor in _reader(file).tensors)
    except Exception as error:  # torn files raise struct, numpy and index errors
        raise BackboneError(f"{file}: cannot be read as GGUF ({error}); it may be torn. Download it again") from error


def licence_of(file: Path) -> str | None:
    """The licence that the file names.

    Raises:
        BackboneError: a package is missing.
    """
    _require_packages(file)
    found = _reader(file).get_field("general.license")
    return None if found is None else str(found.contents())


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file)


def _require_packages(file: Path) -> None:
    """Check that the extra ``gguf`` is installed: the reader, and accelerate, which transformers needs to load the file."""
    if missing := [name for name in ("accelerate", "gguf") if find_spec(name) is None]:
        raise BackboneError(
            f"{file}: GGUF files need packages that are not installed ({', '.join(missing)}): pip install 'ifedicl[gguf]'"
        )
