"""Passes whose shapes repeat are captured once and replayed: the host launches one graph in place of thousands of kernels.

A pass is a function of named tensors and of nothing else, so that a replay with other tensors of the same shapes computes what
the function would. The first pass of a shape runs plainly, the second is captured; whatever cannot be captured runs plainly.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Work: TypeAlias = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]
"""A pass. What it reads beside its tensors must be constant for its key."""
Recorder: TypeAlias = Callable[[Work, Mapping[str, Tensor]], Work]
"""Captures a pass with tensors of the shapes given, and gives its replay. What it raises means that it cannot."""

BUCKET = 16
"""Tokens: widths of captured passes are rounded up to a multiple, so that few shapes occur."""
_MOST = 32  # graphs: each holds its inputs and results; what lies between is in memory that they share
_log = logging.getLogger(__name__)


class Captures:
    """The captured passes of one model. Whoever runs one holds the model's lock."""

    def __init__(self, record: Recorder, *, most: int = _MOST) -> None:
        """Capture with ``record``, and keep at most so many graphs, those that were used last."""
        self._record = record
        self._most = most
        self._replays: OrderedDict[Hashable, Work | None] = OrderedDict()  # None: the shape came once
        self._has_failed = False

    def run(self, key: Hashable, given: Mapping[str, Tensor], work: Work) -> tuple[Tensor, ...]:
        """``work(given)``, replayed if a pass of this key and of these shapes came before.

        Args:
            key: names everything that ``work`` reads beside ``given``.
            given: the tensors that may differ from call to call, on one device.
            work: the pass.
        """
        shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in given.items())
        place = (key, shapes, torch.is_inference_mode_enabled())
        if self._has_failed:
            return work(given)
        is_new, replay = place not in self._replays, self._replays.get(place)
        self._replays[place] = replay
        self._replays.move_to_end(place)
        if len(self._replays) > self._most:
            self._replays.popitem(last=False)
        if replay is not None:
            return replay(given)
        if is_new:
            return work(given)
        try:
            replay = self._record(work, given)
        except Exception as error:  # a driver's, a kernel's and torch's errors have many types
            self._has_failed = True
            self._replays.clear()
            _log.warning(
                'passes run without graphs: capture failed (%s: %s). Numbers are the same; model.launches = "auto" tries none',
                type(error).__name__,
                " ".join(str(error).split())[:200],
            )
            return work(given)
        self._replays[place] = replay
        return replay(given)


class CudaGraphs:
    """Captures passes as CUDA graphs, all in one memory pool: results are copied out before another graph runs."""

    def __init__(self) -> None:
        """Ask for the pool."""
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work, given: Mapping[str, Tensor]) -> Work:
        """The replay of a pass."""
        fixed = {name: tensor.clone() for name, tensor in given.items()}
        device = next(iter(fixed.values())).device
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            work(fixed)  # what a first call does beside its kernels must not be captured
        torch.cuda.current_stream(device).wait_stream(aside)
        for name, tensor in given.items():
            fixed[name].copy_(tensor)  # the pass may have changed them
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"):
            results = work(fixed)

        def replay(others: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            for name, tensor in others.items():
                fixed[name].copy_(tensor, non_blocking=True)
            graph.replay()
            return tuple(result.clone() for result in results)

        return replay


def run(captures: Captures | None, key: Hashable, given: Mapping[str, Tensor], work: Work) -> tuple[Tensor, ...]:
    """As :meth:`Captures.run`; without captures ``work(given)``."""
    return work(given) if captures is None else captures.run(key, given, work)


def bucketed(width: int, most: int) -> int:
    """``width`` tokens rounded up to a multiple of :data:`BUCKET`, but to at most ``most``."""
    return max(width, min(-(-width // BUCKET) * BUCKET, most))
