"""The upper layers alone, on states of the lower ones that are computed once.

Where only layers from ``first`` up are injected, what enters layer ``first`` depends on the frozen model and the tokens only,
so every step and every evaluation after the first can begin there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ifedicl.backbone.layout import Row, states_of
from ifedicl.backbone.load import Backbone

MOST_BYTES = 2**30
"""Of kept states, for one client and task."""


class _EnteredError(Exception):
    """Ends a forward pass below the layer of interest."""


class UpperLayers:
    """Runs rows from layer ``first`` up; what enters it is kept for each row, as far as memory allows.

    The same tokens in other branches are another row. Rows that find no room are run from the embeddings each time. None that
    is kept makes room for another: training walks round and round, and whatever were dropped would be asked for again before
    what replaced it.
    """

    def __init__(self, backbone: Backbone, first: int, *, most_bytes: int = MOST_BYTES) -> None:
        """Compute nothing yet.

        Args:
            backbone: the frozen model.
            first: the lowest layer that anything is done to; 1 to ``L - 1``.
            most_bytes: of kept states.
        """
        self._backbone = backbone
        self._first = first
        self._room = most_bytes
        self._kept: dict[Row, Tensor] = {}
        self._returns: Callable[[Tensor], Any] = _alone

    def hidden_states(self, rows: Sequence[Row]) -> Tensor:
        """As :func:`~ifedicl.backbone.layout.states_of` under the same injections, which must be of layers from ``first`` up.

        Args:
            rows: ``B`` of one kind.

        Returns:
            ``(B, T, d)``.
        """
        entering = self._entering(rows)
        with self._skipping(entering):
            return states_of(self._backbone, rows)

    def _entering(self, rows: Sequence[Row]) -> Tensor:
        """``(B, T, d)``: what enters layer ``first``."""
        missing = [place for place, row in enumerate(rows) if row not in self._kept]
        fresh = self._computed([rows[place] for place in missing]) if missing else None
        shape = (len(rows), max(len(row.tokens) for row in rows), self._backbone.width)
        states = torch.zeros(shape, dtype=self._backbone.model.dtype, device=self._backbone.device)
        for place, row in enumerate(rows):
            if row in self._kept:
                states[place, : len(row.tokens)] = self._kept[row]
        if fresh is not None:
            states[missing, : fresh.shape[1]] = fresh
            for number, place in enumerate(missing):
                self._keep(rows[place], fresh[number, : len(rows[place].tokens)])
        return states

    def _keep(self, row: Row, states: Tensor) -> None:
        size = states.numel() * states.element_size()
        if size <= self._room and row not in self._kept:
            self._kept[row] = states.clone()
            self._room -= size

    @torch.no_grad()
    def _computed(self, rows: Sequence[Row]) -> Tensor:
        caught: list[Tensor] = []

        def catch(_module: nn.Module, _inputs: object, output: Any) -> None:
            # Some families return the states alone, some a tuple that begins with them.
            states = output[0] if isinstance(output, tuple) else output
            self._returns = _tupled(len(output)) if isinstance(output, tuple) else _alone
            caught.append(states)
            raise _EnteredError

        # Ahead of whoever reads states there: this pass is of other rows than theirs.
        handle = self._backbone.blocks[self._first - 1].register_forward_hook(catch, prepend=True)
        try:
            states_of(self._backbone, rows)
        except _EnteredError:
            pass
        finally:
            handle.remove()
        return caught[0]

    @contextmanager
    def _skipping(self, entering: Tensor) -> Iterator[None]:
        """The lower layers return what enters layer ``first`` in place of computing it."""
        returned = self._returns(entering)
        with ExitStack() as stack:
            for block in self._backbone.blocks[: self._first]:
                stack.enter_context(_replaced(block, returned))
            yield


@contextmanager
def _replaced(block: nn.Module, returned: Any) -> Iterator[None]:
    block.forward = lambda *_inputs, **_options: returned  # hides the class's own until it is deleted
    try:
        yield
    finally:
        del block.forward


def _alone(states: Tensor) -> Any:
    return states


def _tupled(length: int) -> Callable[[Tensor], Any]:
    return lambda states: (states, *[None] * (length - 1))
