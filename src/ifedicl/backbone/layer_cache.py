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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifedicl.backbone.layout import Row, states_of
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.memory import RESERVE, ROOM, free_bytes
from ifedicl.backbone.pooling import Means, Span, text_means
from ifedicl.core.transfer import to_device

MOST_BYTES = 2**30
"""Size of the cache of a task in the host's memory without a GPU; clients of one process share it."""


class _EnteredError(Exception):
    """Ends a forward pass below layer ``first``."""


@dataclass
class Shelf:
    """A place for states.

    Attributes:
        free_bytes: room that is left.
        is_pinned: in the host's memory, from where a GPU can copy; otherwise where the states are computed.
    """

    free_bytes: int
    is_pinned: bool = False

    def kept(self, states: Tensor) -> Tensor | None:
        """The states as they are kept here; None: there is no room."""
        size = states.numel() * states.element_size()
        if size > self.free_bytes:
            return None
        self.free_bytes -= size
        return states.cpu().pin_memory() if self.is_pinned else states


def shelves_of(backbone: Backbone, free: Callable[[torch.device], int] = free_bytes) -> list[Shelf]:
    """On a GPU what is free beside a pass with gradients, then half of what the host has free; else :data:`MOST_BYTES`."""
    if backbone.device.type != "cuda":
        return [Shelf(MOST_BYTES)]
    host = free(torch.device("cpu")) // 2
    return [Shelf(max(0, free(backbone.device) - ROOM - RESERVE)), Shelf(host, is_pinned=True)]


class UpperLayers:
    """Runs rows from layer ``first`` up and caches the input of that layer for each row, up to a size.

    The same tokens with other branches are another row. States stay on a GPU while it has room, then in the host's memory, from
    where the GPU takes them without waiting; rows that fit nowhere are run from the embeddings each time. Nothing is evicted:
    training repeats the rows in turn, so an evicted row would be needed before the one that replaced it.
    """

    def __init__(self, backbone: Backbone, first: int, *, shelves: Sequence[Shelf] | None = None) -> None:
        """Compute nothing yet.

        Args:
            backbone: the model.
            first: the lowest layer that is injected or read, 1 to ``L - 1``.
            shelves: where states are kept, the first with room first (None: :func:`shelves_of` the model's device).
        """
        self._backbone = backbone
        self.first = first
        self._shelves = shelves
        self._cache: dict[Row, Tensor] = {}
        self._means: dict[tuple[Row, Span], Tensor] = {}
        self._block_output: Callable[[Tensor], Any] = lambda states: states

    def hidden_states(self, rows: Sequence[Row]) -> Tensor:
        """``(B, T, d)``: :func:`~ifedicl.backbone.layout.states_of` for ``B`` rows, with injections from ``first`` up only."""
        with self.skipping(self.entering(rows)):
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
            with text_means(self._backbone, [span]) as means:
                self._store(row, self._computed(row))
            kept = torch.stack([means[0, layer] for layer in span.layers])
            if (stored := self._kept(kept)) is not None:
                self._means[row, span] = stored
        return dict(zip(span.layers, kept.to(self._backbone.device).unbind(), strict=True))

    def entering(self, rows: Sequence[Row], width: int | None = None) -> Tensor:
        """``(B, T, d)``: the input of layer ``first``, as wide as the longest row or as given."""
        kept = [self._entering_alone(row) for row in rows]
        # Of padding 0: a row of zeros stands there.
        places = np.zeros((len(rows), width or max(map(len, kept))), dtype=np.int64)
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
        return kept.to(self._backbone.device, non_blocking=True)

    def _store(self, row: Row, states: Tensor) -> None:
        if row not in self._cache and (kept := self._kept(states)) is not None:
            self._cache[row] = kept

    def _kept(self, states: Tensor) -> Tensor | None:
        """As they are kept where there is room; None: nowhere."""
        if self._shelves is None:  # measured when the first state is there, so that the weights and a pass are, too
            self._shelves = shelves_of(self._backbone)
        return next((kept for shelf in self._shelves if (kept := shelf.kept(states)) is not None), None)

    @torch.no_grad()
    def _computed(self, row: Row) -> Tensor:
        caught: list[Tensor] = []

        def catch(_module: nn.Module, _inputs: object, output: Any) -> None:
            # Some families return the states alone, some a tuple that begins with them.
            if isinstance(output, tuple):
                output, *others = output
                self._block_output = lambda states: (states, *[None] * len(others))
            caught.append(output.to(self._backbone.device))
            raise _EnteredError

        # Before other hooks that read states there: they must not see this pass.
        handle = self._backbone.blocks[self.first - 1].register_forward_hook(catch, prepend=True)
        try:
            states_of(self._backbone, [row])
        except _EnteredError:
            pass
        finally:
            handle.remove()
        return caught[0][0].clone()  # a part keeps the whole's tensor as well, which is half a kilobyte of a row

    @contextmanager
    def skipping(self, entering: Tensor) -> Iterator[None]:
        """Let the lower layers return the input of layer ``first`` instead of computing it."""
        output = self._block_output(entering)
        with ExitStack() as stack:
            for block in self._backbone.blocks[: self.first]:
                stack.callback(_restore, block, block.__dict__.get("forward"))
                block.forward = lambda *_inputs, **_options: output  # hides the method of the class, and accelerate's
            yield


def _restore(block: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Give a block the ``forward`` of its own that it had, or None: the one of its class."""
    if forward is None:
        del block.forward
    else:
        block.forward = forward
