"""Examples of several requests that run together: rows of one forward pass, or the passes of one adapter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.multi_adapter import Apart, Asked, Placed, mixed_batches, mixed_log_probabilities
from ifedicl.backbone.prompts import EncodedExamples, Prompts, Tokens


@dataclass(frozen=True, eq=False)
class Turn:
    """One encoded example, and the adapter or raw model that is asked for it.

    Attributes:
        label: as :meth:`BaseScorer.encoded` makes it.
        work: as :meth:`AnyTask.work_of`.
    """

    model: Placed | Apart
    prompt: Tokens
    label: Any
    work: int


def groups(turns: Sequence[Turn]) -> list[list[int]]:
    """Positions of ``turns`` in groups, each for one call of :func:`scores_of`."""
    shared, apart = dict[int, Asked](), defaultdict[Apart, list[int]](list)
    for position, turn in enumerate(turns):
        if isinstance(turn.model, Placed):
            shared[position] = Asked(turn.model, turn.prompt)
        else:
            apart[turn.model].append(position)
    positions = list(shared)
    mixed = [[positions[index] for index in batch] for batch in mixed_batches(list(shared.values()))]
    return [*mixed, *apart.values()]


def scores_of(backbone: Backbone, turns: Sequence[Turn], on_pass: Callable[[], None]) -> list[npt.NDArray[Any]]:
    """For each turn the rows of scores of its example.

    Args:
        backbone: the model.
        turns: one of :func:`groups`.
        on_pass: called before each pass; what it raises ends the work.
    """
    on_pass()
    shared = [Asked(turn.model, turn.prompt) for turn in turns if isinstance(turn.model, Placed)]
    if shared:
        return [logs[None] for logs in mixed_log_probabilities(backbone, shared)]
    model = turns[0].model
    assert isinstance(model, Apart)
    prompts = Prompts(tuple(turn.prompt for turn in turns), 0)
    return model.scores(EncodedExamples(prompts, tuple(turn.label for turn in turns)), on_pass)
