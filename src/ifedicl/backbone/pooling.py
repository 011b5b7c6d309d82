"""The mean states of the text's tokens at the inputs of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lock import exclusive
from ifedicl.core.transfer import to_device

Means: TypeAlias = dict[tuple[int, int], Tensor]
"""By row of a pass and layer: the mean state, ``(d,)`` float32."""


@dataclass(frozen=True)
class Span:
    """The tokens of one row whose mean states are read.

    Attributes:
        layers: their inputs are read; each 1 to ``L`` (``L``: the output of the last layer).
        first: the first token, counted from the start of the pass.
        end: one past the last token.
    """

    layers: tuple[int, ...]
    first: int
    end: int


@contextmanager
def text_means(
    backbone: Backbone, spans: Sequence[Span | None], *, first_layer: int = 0, rows: Sequence[int] | None = None
) -> Iterator[Means]:
    """Read the mean states over a span of tokens in each row of one forward pass (None: nothing is read).

    Layers below ``first_layer`` are left out. With ``rows``, which has the row of each span, a row may have several; then means
    are by span and layer.

    Yields:
        The means. The pass fills them in.
    """
    caught: Means = {}

    def catch(layer: int, _module: nn.Module, _inputs: object, output: Any) -> None:
        # Some families return the states alone, some a tuple that begins with them.
        states: Tensor = output[0] if isinstance(output, tuple) else output
        read = {row: span for row, span in enumerate(spans) if span is not None and layer in span.layers}
        outside = np.ones((len(read), states.shape[1], 1), dtype=np.bool_)
        for number, span in enumerate(read.values()):
            outside[number, span.first : span.end] = False
        if rows is not None or len(read) < len(spans):
            places = [place if rows is None else rows[place] for place in read]
            states = states.index_select(0, to_device(np.array(places), states.device))
        counts = to_device(np.array([[span.end - span.first] for span in read.values()], dtype=np.float32), states.device)
        # Masked, not multiplied by 0: what stands outside a span need not be finite.
        sums = states.float().masked_fill(to_device(outside, states.device), 0.0).sum(dim=1)  # (rows, d)
        found = (sums / counts).to(backbone.device).unbind()
        caught.update(zip([(row, layer) for row in read], found, strict=True))

    with exclusive(backbone), ExitStack() as stack:
        for layer in {layer for span in spans if span is not None for layer in span.layers if layer >= first_layer}:
            stack.callback(backbone.blocks[layer - 1].register_forward_hook(partial(catch, layer)).remove)
        yield caught


def with_text(states: Tensor, spans: Sequence[Span | None], means: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """``(B, h)`` float32: ``(B, d)`` states, and behind each the text means of its row.

    ``spans`` are those of the pass's rows: of ``B`` of them if any is read at all, and all of the same layers.
    """
    read = [(row, span.layers) for row, span in enumerate(spans) if span is not None]
    if not read:
        return states.float()
    text = torch.stack([torch.cat([means[row, layer] for layer in layers]) for row, layers in read])
    return torch.cat([states.float(), text], dim=1)
