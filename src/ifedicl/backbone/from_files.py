"""Configuration, model and tokenizer from a checkpoint folder. Whatever fails in a library becomes an error with a remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ifedicl.backbone.fingerprint import json_object
from ifedicl.backbone.preflight import refuse_missing
from ifedicl.backbone.soundness import refuse_not_finite
from ifedicl.errors import BackboneError, NotEnoughMemoryError

_AGAIN = "Download the model again"
_NUMBERED = re.compile(r"(?P<list>.*?\.)(?P<number>\d+)\.")
"""The name of a tensor in a list of layers."""


def read_config(folder: Path, source: str) -> Any:
    """The configuration.

    Raises:
        BackboneError: it is absent or torn, of a kind that transformers does not know, or has a value that is not allowed.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # checks of config fields raise many types
        kind = json_object(folder / "config.json").get("model_type")
        is_known = isinstance(kind, str) and _is_known(kind)
        remedy = "Correct that field" if is_known else "Remote code is never run. Choose a model that transformers knows"
        raise BackboneError(f"{source}: its config.json cannot be used ({one_line(error)}). {remedy}") from error


def _is_known(model_type: str) -> bool:
    try:
        AutoConfig.for_model(model_type)
    except Exception:  # a type without defaults raises others than ValueError
        return False
    return True


def read_model(
    folder: Path, config: Any, dtype: torch.dtype, source: str, *, device_map: str | Mapping[str, str | int] | None = None
) -> Any:
    """The model, in the host's memory or divided as ``device_map`` says.

    Args:
        folder: with the files.
        config: from :func:`read_config`.
        dtype: of the weights in memory.
        source: as the user named it.
        device_map: as :attr:`ModelSettings.device_map`.

    Raises:
        NotEnoughMemoryError: memory ran out.
        BackboneError: files are torn or do not belong together, a package is missing, or a weight is no number.
    """
    # A config.json can ask for a kernel that is not installed, or that the hub would deliver as code. All compute the same, so
    # what it asks for does not count, except for "eager".
    named = {getattr(part, "_attn_implementation", None) for part in (config, config.get_text_config())}
    changed: dict[str, Any] = {}
    if not named <= {None, "eager"}:
        config.update({"_attn_implementation": None})  # of its parts, too
        changed = {"config": config}
    if device_map is not None:
        changed["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    with _loading(source, "cpu"):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            **changed,
        )
        _refuse_other_shapes(info["mismatched_keys"], source)
        refuse_missing(info["missing_keys"], source)
        _refuse_more_layers(info["unexpected_keys"], model, source)
        refuse_not_finite(model, source)
    return model


def on_device(model: Any, device: torch.device, source: str) -> Any:
    """The model on one device.

    Raises:
        NotEnoughMemoryError: memory ran out.
    """
    with _loading(source, device.type):
        return model.to(device)


@contextmanager
def _loading(source: str, where: str) -> Iterator[None]:
    try:
        yield
    except BackboneError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise NotEnoughMemoryError(
            f"model.source: {source}: the memory of {where} is full. Use model.dtype = 'bfloat16', model.quantisation = "
            "'int8', a smaller model, or a machine with more memory"
        ) from error
    except ImportError as error:
        raise _package(source, error) from error
    except Exception as error:  # a config.json that does not fit its weights raises many types
        raise BackboneError(
            f"{source}: the model cannot be loaded ({type(error).__name__}: {one_line(error)}). Its weights, config.json or "
            f"generation_config.json may be torn, or not belong together. {_AGAIN}"
        ) from error


def _refuse_other_shapes(mismatched: Any, source: str) -> None:
    """``mismatched`` holds (name, stored shape, shape in the model)."""
    if mismatched:
        name, stored, wanted = min(mismatched)
        raise BackboneError(
            f"model.source: {source}: its weights cannot be loaded: {len(mismatched)} tensors have another shape than its "
            f"config.json says, for instance {name}: received {tuple(stored)}; allowed: {tuple(wanted)}. Correct it, or "
            "download the model again"
        )


def _refuse_more_layers(unexpected: Iterable[str], model: Any, source: str) -> None:
    """Refuse a configuration that leaves layers of the weights out: what is loaded would be another model."""
    counts: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if (found := _NUMBERED.match(name)) is not None:
            counts[found["list"]] = max(counts.get(found["list"], 0), int(found["number"]) + 1)
    layers = int(model.config.get_text_config().num_hidden_layers)
    named = [(name, found) for name in sorted(unexpected) if (found := _NUMBERED.match(name)) is not None]
    beyond = [name for name, found in named if int(found["number"]) >= counts.get(found["list"], math.inf)]
    if layers < 1 or beyond:
        also = f"its weights hold more, for instance {beyond[0]}" if beyond else "a model has one or more"
        raise BackboneError(f"{source}: its config.json says num_hidden_layers = {layers}, and {also}. Correct that field")


def read_tokenizer(folder: Path, source: str) -> Any:
    """The tokenizer.

    Raises:
        BackboneError: it is absent or torn, needs code of its own, or a package is missing.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except ImportError as error:
        raise _package(source, error) from error
    except Exception as error:  # the tokenizer libraries raise many types, a bare Exception among them
        if json_object(folder / "tokenizer_config.json").get("auto_map"):
            raise BackboneError(
                f"{source}: its tokenizer needs code of its own (auto_map in its tokenizer_config.json), which is "
                "never run; allowed: a tokenizer that transformers knows. Save it as tokenizer.json on a machine that you trust"
            ) from error
        raise BackboneError(
            f"{source}: its tokenizer cannot be loaded ({one_line(error)}); a file may be torn or absent. {_AGAIN}"
        ) from error


def _package(source: str, error: ImportError) -> BackboneError:
    return BackboneError(
        f"{source}: transformers needs a package to load it that is not installed ({one_line(error)}). Install the package, or "
        "choose another model"
    )


def one_line(error: BaseException) -> str:
    """What a library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
