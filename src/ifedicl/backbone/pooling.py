"""What the model makes of the text on its way: the mean state of the text's tokens where it enters a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ifedicl.backbone.load import Backbone


@dataclass(frozen=True)
class Span:
    """Which state of one row is wanted.

    Attributes:
        layer: the mean is of what enters it; 1 to ``L`` (``L``: what leaves the last one).
        first: the first token of the text, counted from where the pass begins.
        end: one past its last token.
    """

    layer: int
    first: int
    end: int


@contextmanager
def pooled(backbone: Backbone, spans: Sequence[Span | None]) -> Iterator[dict[int, Tensor]]:
    """Catch the mean state over a span of tokens in each row of one forward pass.

    Args:
        backbone: the model.
        spans: one for each row; None where nothing is wanted.

    Yields:
        What was caught, by row: ``(d,)`` float32, in the order of the rows where all are of one layer. The pass fills it.
    """
    caught: dict[int, Tensor] = {}

    def catch(layer: int, module: nn.Module) -> RemovableHandle:
        rows = [row for row, span in enumerate(spans) if span is not None and span.layer == layer]

        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            # Some families return the states alone, some a tuple that begins with them.
            states: Tensor = output[0] if isinstance(output, tuple) else output
            for row in rows:
                span = spans[row]
                assert span is not None
                caught[row] = states[row, span.first : span.end].float().mean(dim=0)

        return module.register_forward_hook(hook)

    with ExitStack() as stack:
        for layer in {span.layer for span in spans if span is not None}:
            stack.callback(catch(layer, backbone.blocks[layer - 1]).remove)
        yield caught
