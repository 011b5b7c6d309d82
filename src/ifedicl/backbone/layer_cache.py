"""Runs the upper layers alone, on cached states of the lower ones.

If only layers from ``first`` up are injected, the input of layer ``first`` depends on the frozen model and the tokens only.
Every step and every evaluation after the first starts there. Mean states of the text at lower layers are kept too.

Each row runs through the lower layers in a pass of its own, without padding. In a batch its last bits would depend on the other
rows, so a resumed run, which begins with an empty cache, would end differently; and in private mode one example would change
another's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifedicl.backbone.layout import Row, states_of
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.pooling import Means, Span, text_means
from ifedicl.core.transfer import to_device

MOST_BYTES = 2**30
"""Size of the cache of a task; clients of one process share it."""


class _EnteredError(Exception):
    """Ends a forward pass below layer ``first``."""


class UpperLayers:
    """Runs rows from layer ``first`` up and caches the input of that layer for each row, up to a size.

    The same tokens with other branches are another row. Rows that do not fit are run from the embeddings each time. Nothing is
    evicted: training repeats the rows in turn, so an evicted row would be needed before the one that replaced it.
    """

    def __init__(self, backbone: Backbone, first: int, *, most_bytes: int = MOST_BYTES) -> None:
        """Compute nothing yet; ``first`` is the lowest layer that is injected or read, 1 to ``L - 1``."""
        self._backbone = backbone
        self.first = first
        self._free_bytes = most_bytes
        self._cache: dict[Row, Tensor] = {}
        self._means: dict[tuple[Row, Span], Means] = {}
        self._block_output: Callable[[Tensor], Any] = lambda states: states

    def hidden_states(self, rows: Sequence[Row]) -> Tensor:
        """``(B, T, d)``: :func:`~ifedicl.backbone.layout.states_of` for ``B`` rows, with injections from ``first`` up only."""
        with self._skipping(self._entering(rows)):
            return states_of(self._backbone, rows)

    def text_means(self, rows: Sequence[Row], spans: Sequence[Span | None]) -> Means:
        """Those of layers below ``first``."""
        means: Means = {}
        for place, (row, span) in enumerate(zip(rows, spans, strict=True)):
            layers = () if span is None else tuple(layer for layer in span.layers if layer < self.first)
            if span is not None and layers:
                means |= {(place, layer): mean for layer, mean in self._means_of(row, replace(span, layers=layers)).items()}
        return means

    def _means_of(self, row: Row, span: Span) -> dict[int, Tensor]:
        """By layer."""
        kept = self._means.get((row, span))
        if kept is None:
            with text_means(self._backbone, [span]) as kept:
                self._store(row, self._computed(row))
            size = sum(mean.numel() * mean.element_size() for mean in kept.values())
            if size <= self._free_bytes:
                self._means[row, span] = kept
                self._free_bytes -= size
        return {layer: mean for (_, layer), mean in kept.items()}

    def _entering(self, rows: Sequence[Row]) -> Tensor:
        """``(B, T, d)``: the input of layer ``first``."""
        kept = [self._entering_alone(row) for row in rows]
        places = np.zeros((len(rows), max(map(len, kept))), dtype=np.int64)  # of padding 0: a row of zeros stands there
        ends = np.cumsum([len(states) for states in kept]) + 1
        for number, (states, end) in enumerate(zip(kept, ends, strict=True)):
            places[number, : len(states)] = np.arange(end - len(states), end)
        together = torch.cat([torch.zeros_like(kept[0][:1]), *kept])
        return together.index_select(0, to_device(places.ravel(), together.device)).view(*places.shape, -1)

    def _entering_alone(self, row: Row) -> Tensor:
        """``(T, d)``: the same bits whatever ran before, whether they are cached or computed."""
        kept = self._cache.get(row)
        if kept is None:
            kept = self._computed(row)
            self._store(row, kept)
        return kept

    def _store(self, row: Row, states: Tensor) -> None:
        size = states.numel() * states.element_size()
        if size <= self._free_bytes and row not in self._cache:
            self._cache[row] = states
            self._free_bytes -= size

    @torch.no_grad()
    def _computed(self, row: Row) -> Tensor:
        caught: list[Tensor] = []

        def catch(_module: nn.Module, _inputs: object, output: Any) -> None:
            # Some families return the states alone, some a tuple that begins with them.
            if isinstance(output, tuple):
                output, *others = output
                self._block_output = lambda states: (states, *[None] * len(others))
            caught.append(output)
            raise _EnteredError

        # Before other hooks that read states there: they must not see this pass.
        handle = self._backbone.blocks[self.first - 1].register_forward_hook(catch, prepend=True)
        try:
            states_of(self._backbone, [row])
        except _EnteredError:
            pass
        finally:
            handle.remove()
        return caught[0][0]

    @contextmanager
    def _skipping(self, entering: Tensor) -> Iterator[None]:
        """Let the lower layers return the input of layer ``first`` instead of computing it."""
        output = self._block_output(entering)
        with ExitStack() as stack:
            for block in self._backbone.blocks[: self.first]:
                block.forward = lambda *_inputs, **_options: output  # hides the method of the class until it is deleted
                stack.callback(delattr, block, "forward")
            yield
