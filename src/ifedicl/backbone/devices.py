"""Devices and dtypes by the names that settings use."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from ifedicl.errors import BackboneError

_log = logging.getLogger(__name__)
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes that a model computes or is stored in, by name."""
_UNITS = {"bfloat16": ("amx_bf16", "avx512_bf16"), "float16": ("amx_fp16", "avx512_fp16")}
"""Of a processor, by torch's names: without one of them, a product in this dtype is many times slower than in float32."""


def device_named(name: str) -> torch.device:
    """The device by name; "auto" is a GPU where torch finds one.

    Raises:
        BackboneError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BackboneError(
            f"model.device: received {name!r}, but torch finds no GPU; allowed: 'cpu' or 'auto'. Or install a CUDA build"
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise BackboneError(f"model.device: received {name!r}; allowed: 'cpu', or up to 'cuda:{last}'. Choose one, or 'auto'")
    return device


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """The dtype by name; "auto" is bfloat16 only where the processor is faster in it than in float32."""
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if name == "auto":
        return torch.bfloat16 if _has_units("bfloat16") else torch.float32
    if device.type == "cpu" and name in _UNITS and not _has_units(name):
        _log.warning(
            "model.dtype: %s on a processor without units for it: a product takes many times as long as in float32 (37 times, "
            'measured with AVX2). Use "auto" or "float32"',
            name,
        )
    return DTYPES[name]


def _has_units(dtype: str) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in _UNITS[dtype])
