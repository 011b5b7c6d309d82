"""The mean state of the text's tokens at the input of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lock import exclusive


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
        for row, span in enumerate(spans):
            if span is not None and span.layer == layer:
                caught[row] = states[row, span.first : span.end].float().mean(dim=0)

    with exclusive(backbone), ExitStack() as stack:
        for layer in {span.layer for span in spans if span is not None}:
            stack.callback(backbone.blocks[layer - 1].register_forward_hook(partial(catch, layer)).remove)
        yield caught
