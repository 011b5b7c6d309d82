"""A stand-in for CUDA graphs on a CPU: a pass is traced to its operations, which are then run with other tensors.

As in a graph, whatever the pass takes from the host is fixed when it is traced: a number that it reads back, or a tensor that
it makes of the host's numbers. Reading one back fails, as capture does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ifedicl.backbone.capture import Work


class Traced:
    """A recorder, with how many passes it traced and replayed."""

    def __init__(self) -> None:
        self.traced = self.replayed = 0

    def __call__(self, work: Work, given: Mapping[str, Tensor]) -> Work:
        """The replay of a pass."""
        graph = make_fx(lambda tensors: work(tensors), tracing_mode="fake", _allow_non_fake_inputs=True)(dict(given))
        if any(node.target is torch.ops.aten._local_scalar_dense.default for node in graph.graph.nodes):
            raise RuntimeError("a number of the device was read during the capture")
        self.traced += 1

        def replay(others: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            self.replayed += 1
            return tuple(graph({name: tensor.detach() for name, tensor in others.items()}))

        return replay
