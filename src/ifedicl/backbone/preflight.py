"""Checks that a model fits into memory, before it is loaded, and that it is complete."""

from __future__ import annotations

from collections.abc import Collection

import psutil
import torch

from ifedicl.errors import BackboneError, NotEnoughMemoryError

_WORKING_MEMORY = 1.15  # weights and the activations of one batch
_MIB = 1 << 20


def check_memory(elements: int, dtype: torch.dtype, device: torch.device, source: str, *, bits: int | None = None) -> None:
    """Refuse a model of ``elements`` weights that does not fit on ``device`` in ``dtype``; ``source`` names it in the message.

    With ``bits`` most weights are quantised to these before a GPU gets them; the host holds them in ``dtype`` first.

    Raises:
        NotEnoughMemoryError: the model needs more memory than is free.
    """
    itemsize = bits / 8 if bits and device.type == "cuda" else dtype.itemsize
    needed = int(elements * itemsize * _WORKING_MEMORY)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise NotEnoughMemoryError(
            f"model.source: {source} needs about {needed // _MIB:,} MiB in {str(dtype).removeprefix('torch.')}; "
            f"{free // _MIB:,} MiB are free on {device.type}. Use model.dtype = 'bfloat16', a smaller model, or a machine with "
            "more memory"
        )


def refuse_missing(names: Collection[str], source: str) -> None:
    """Refuse a model that lacks tensors: transformers fills them with random numbers.

    Raises:
        BackboneError: ``names`` is not empty.
    """
    if names:
        raise BackboneError(
            f"model.source: {source} lacks {len(names)} tensors, for instance {min(names)}; its files or its config are "
            "incomplete. Download the model again"
        )
