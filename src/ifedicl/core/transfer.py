"""The two ways between the host and the model's device. Nothing else copies between them.

A GPU works behind the host, which only queues its work. Every number that the host asks for makes it wait until all that is
queued is done, so results stay on the device and leave it together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(array: npt.NDArray[Any], device: torch.device | None) -> Tensor:
    """The array on a device (None: the CPU), without waiting for it. On a CPU the tensor shares the array's memory."""
    # From memory that is not pinned, CUDA takes the bytes before the call returns: the array may go.
    return torch.from_numpy(array).to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[npt.NDArray[Any]]:
    """Float32 or float64 tensors of one device as arrays, in one copy; the only call that waits for a GPU."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.detach().numpy() for tensor in tensors]
    flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors]).cpu().numpy()  # float64 holds float32 exactly
    parts = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    kinds = [np.float64 if tensor.dtype == torch.float64 else np.float32 for tensor in tensors]
    return [part.astype(kind).reshape(tensor.shape) for part, kind, tensor in zip(parts, kinds, tensors, strict=True)]
