"""Where the parts of a model compute, if accelerate has divided it over several devices.

Weights that do not fit are in the host's memory or on the disk, and come for the time of their module's pass. Tokens go to the
model's device, that of its embedding, and states come back to it; hooks meet each write on its layer's device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module with weights of its own computes: accelerate says so, or its weights are there."""
    named = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if named is None:
        return next(chain(module.parameters(), module.buffers())).device
    return torch.device("cuda", named) if isinstance(named, int) else torch.device(named)


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """The module's own weights are on its device within the block, wherever they are before and after it."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield
