"""What a checkpoint folder holds, told from its files: a model that can be loaded, or something else with a name and a remedy.

What is loaded must be what is hashed (:mod:`ifedicl.backbone.fingerprint`), so a folder from which transformers would
load more, or other files, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ifedicl.backbone.fingerprint import INDEX, SINGLE, json_object, stored_tensors, weight_files
from ifedicl.errors import BackboneError, UnsafeWeightsError

_ALLOWED = "safetensors or GGUF"
_POINTER = b"version https://git-lfs"
_ADAPTER = "adapter_config.json"
# Ends of the names of tensors that hold quantised weights or their scales, by the kind that writes them.
_QUANTISED_TENSORS: Mapping[str, str] = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".weight_scale": "FP8 or compressed-tensors",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".W_q": "HQQ",
    "_blocks": "MXFP4",
}
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")


def check_folder(folder: Path, source: str) -> None:
    """Refuse a folder whose model cannot be loaded as it is.

    Args:
        folder: with the files.
        source: as the user named it, for messages.

    Raises:
        UnsafeWeightsError: there are no weights that are safe to read.
        BackboneError: the folder is an adapter, holds one, holds quantised weights, or its weights have other names.
    """
    config = json_object(folder / "config.json")
    _refuse_adapters(folder, source)
    _refuse_other_names(folder, config, source)
    _refuse_quantised(folder, config, source)


def _refuse_adapters(folder: Path, source: str) -> None:
    file = folder / _ADAPTER
    if not file.is_file():
        return
    adapter = json_object(file)
    kind = str(adapter.get("peft_type") or "PEFT").replace("_", " ")
    base = adapter.get("base_model_name_or_path")
    merge = "Merge it first: PeftModel.merge_and_unload() of peft, then save_pretrained() to a new folder"
    if not any(place.is_file() for place in (folder / SINGLE, folder / INDEX)):
        of = f" of {base!r}" if base else ""
        raise BackboneError(
            f"model.source: {source} holds a {kind} adapter{of} ({_ADAPTER}) and no model; allowed: a whole model in "
            f"{_ALLOWED}. {merge}, or give the base model"
        )
    raise BackboneError(
        f"model.source: {source} holds a {kind} adapter ({_ADAPTER}) beside the weights of a model. With peft installed "
        f"both would be loaded, without it only the weights; allowed: one of them. "
        f"{merge}; or move {_ADAPTER} and its weights elsewhere"
    )


def _refuse_other_names(folder: Path, config: Mapping[str, Any], source: str) -> None:
    found = sorted(file.name for file in folder.glob("*.safetensors") if file.is_file())
    if not found:
        _refuse_no_weights(folder, source)
    if named := config.get("transformers_weights"):
        raise BackboneError(
            f"model.source: {source}: transformers_weights in its config.json names {str(named)!r} as the weights; allowed: "
            f"{SINGLE}, or {INDEX} and its parts. Rename the file, and remove the line from config.json"
        )
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        names = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        whole = len(found) == 1 and "-of-" not in found[0]
        remedy = f"Rename it to {SINGLE}" if whole else f"Download the index, {INDEX}, too, if these are parts of one model"
        if any("-of-" not in name for name in found) and not whole:
            remedy = f"Keep the one that you want and rename it to {SINGLE}"
        raise BackboneError(
            f"model.source: {source} holds weights under other names ({names}); allowed: {SINGLE}, or {INDEX} and its parts. "
            f"{remedy}"
        )
    if not (folder / SINGLE).is_file():
        _refuse_index(folder, source)
    for file in weight_files(folder):
        if not file.is_file():
            raise BackboneError(
                f"model.source: {source}: {INDEX} names {file.name}, which is not there. Download the model again"
            )
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise BackboneError(
                    f"model.source: {source}: {file.name} is a pointer of Git LFS, not the weights. Run `git lfs pull` in "
                    "the folder"
                )


def _refuse_index(folder: Path, source: str) -> None:
    """An index has ``metadata``, and a file of the folder for each tensor."""
    index = json_object(folder / INDEX)
    places = index.get("weight_map")
    names = list(places.values()) if isinstance(places, dict) and isinstance(index.get("metadata"), dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise BackboneError(
            f"model.source: {source}: {INDEX} is torn or no index; allowed: an object with metadata, and in weight_map a "
            "file of the folder for each tensor. Download it again"
        )


def _refuse_no_weights(folder: Path, source: str) -> None:
    pickled = [file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(kind)]
    if files := sorted(file.name for file in folder.glob("*.gguf")):
        raise BackboneError(
            f"model.source: {source} is a folder of GGUF files ({', '.join(files[:3])}); allowed: one GGUF file. Name the file "
            "itself"
        )
    content = f"only pickled weights ({', '.join(sorted(pickled))})" if pickled else "no weights"
    raise UnsafeWeightsError(
        f"model.source: {source} holds {content}; allowed: {_ALLOWED}. Pickles can run code. "
        "Use a revision with safetensors, or convert it on a machine that you trust"
    )


def _refuse_quantised(folder: Path, config: Mapping[str, Any], source: str) -> None:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for field in ("quantization_config", "compression_config"):
            if part.get(field) is not None:
                raise _quantised(source, _kind(part[field]), f"{field} in its config.json")
    for tensor in stored_tensors(folder):
        ending = next((ending for ending in _QUANTISED_TENSORS if tensor.name.endswith(ending)), None)
        if ending is not None:
            raise _quantised(source, _QUANTISED_TENSORS[ending], f"the tensor {tensor.name}")
        if tensor.dtype in _INTEGERS and tensor.name.endswith(".weight"):
            raise _quantised(source, "integers", f"the tensor {tensor.name} of {tensor.dtype}")


def _kind(settings: object) -> str:
    if not isinstance(settings, dict):
        return "of an unknown kind"
    for name in ("load_in_4bit", "load_in_8bit"):
        if settings.get(name):
            return f"bitsandbytes, {name}"
    return str(settings.get("quant_method") or settings.get("quant_type") or "of an unknown kind")


def _quantised(source: str, kind: str, place: str) -> BackboneError:
    return BackboneError(
        f"model.source: {source} holds quantised weights ({kind}; see {place}); allowed: float32, bfloat16 or float16 weights "
        "in safetensors, or a GGUF file of any quantisation. Use the model from which it was made, or a GGUF file of it"
    )
