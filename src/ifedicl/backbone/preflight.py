"""Whether a model fits, said before anything is loaded, and whether it is whole."""

from __future__ import annotations

from collections.abc import Collection

import psutil
import torch

from ifedicl.errors import BackboneError, NotEnoughMemoryError

_WORKING_MEMORY = 1.15  # weights, and room for one batch of activations
_MIB = 1 << 20


def check_memory(elements: int, dtype: torch.dtype, device: torch.device, source: str) -> None:
    """Refuse a model that would not fit.

    Args:
        elements: how many numbers its weights are.
        dtype: each of them, once loaded.
        device: where they go.
        source: the model's name, for the message.

    Raises:
        NotEnoughMemoryError: with what it needs and what is free.
    """
    needed = int(elements * dtype.itemsize * _WORKING_MEMORY)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise NotEnoughMemoryError(
            f"{source} needs about {needed // _MIB:,} MiB in {str(dtype).removeprefix('torch.')}, and {free // _MIB:,} MiB are "
            f"free on {device.type}. Use model.dtype = 'bfloat16', a smaller model, or a machine with more memory"
        )


def refuse_missing(names: Collection[str], source: str) -> None:
    """Refuse a model that lacks tensors: transformers would fill them with random numbers.

    Raises:
        BackboneError: ``names`` is not empty.
    """
    if names:
        raise BackboneError(
            f"{source} lacks {len(names)} of the model's tensors, {min(names)} among them; its files or its config are not "
            "whole. Download it again"
        )
