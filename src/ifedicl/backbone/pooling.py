"""The mean state of the text's tokens at the input of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lock import exclusive
from ifedicl.core.transfer import to_device


@dataclass(frozen=True)
class Span:
    """The tokens of one row whose mean state is read.

    Attributes:
        layer: its input is read; 1 to ``L`` (``L``: the output of the last layer).
        first: the first token, counted from the start of the pass.
        end: one past the last token.
    """

    layer: int
    first: int
    end: int


@contextmanager
def text_means(backbone: Backbone, spans: Sequence[Span | None]) -> Iterator[dict[int, Tensor]]:
    """Read the mean state over a span of tokens in each row of one forward pass (None: nothing is read).

    Yields:
        The means by row: ``(d,)`` float32, in the order of the rows if all are of one layer. The pass fills it.
    """
    caught: dict[int, Tensor] = {}

    def catch(layer: int, _module: nn.Module, _inputs: object, output: Any) -> None:
        # Some families return the states alone, some a tuple that begins with them.
        states: Tensor = output[0] if isinstance(output, tuple) else output
        read = {row: span for row, span in enumerate(spans) if span is not None and span.layer == layer}
        outside = np.ones((len(read), states.shape[1], 1), dtype=np.bool_)
        for number, span in enumerate(read.values()):
            outside[number, span.first : span.end] = False
        if len(read) < len(spans):
            states = states.index_select(0, to_device(np.array(list(read)), states.device))
        counts = to_device(np.array([[span.end - span.first] for span in read.values()], dtype=np.float32), states.device)
        # Masked, not multiplied by 0: what stands outside a span need not be finite.
        sums = states.float().masked_fill(to_device(outside, states.device), 0.0).sum(dim=1)  # (rows, d)
        caught.update(zip(read, (sums / counts).to(backbone.device).unbind(), strict=True))

    with exclusive(backbone), ExitStack() as stack:
        for layer in {span.layer for span in spans if span is not None}:
            stack.callback(backbone.blocks[layer - 1].register_forward_hook(partial(catch, layer)).remove)
        yield caught
