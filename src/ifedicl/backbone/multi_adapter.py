"""Texts of several adapters in one forward pass: what is injected, and how labels are read, differs from row to row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ifedicl.backbone.encoding import Tokens
from ifedicl.backbone.hooks import Injection, injected_by_row
from ifedicl.backbone.layout import Layout, states_of
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.pooling import Span, pooled
from ifedicl.backbone.scoring import Scorer, length_batches, with_text
from ifedicl.core.readout import Readout
from ifedicl.core.vectors import Array32


@dataclass(frozen=True, eq=False)
class Placed:
    """An adapter on the model, or the raw model asked its task.

    Attributes:
        scorer: of its task.
        injection: None: the raw model.
        readout: reads the labels off; None: the label words do.
    """

    scorer: Scorer
    injection: Injection | None = None
    readout: Readout | None = None

    def spans(self, prompts: Sequence[Tokens]) -> list[Span | None]:
        """Where the readout looks at the text, for each prompt."""
        return self.scorer.spans(prompts, None if self.readout is None else self.readout.pooled_layer)


@dataclass(frozen=True, eq=False)
class Asked:
    """One encoded text and who is asked about it."""

    placed: Placed
    prompt: Tokens


def mixed_batches(rows: Sequence[Asked]) -> list[list[int]]:
    """Positions of ``rows`` in groups that each make one forward pass; within a group, rows of one adapter stand together."""
    by_kind: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)  # rows of one pass are alike in what they cost
    layouts = [row.placed.scorer.layout([row.prompt]) for row in rows]
    for position, layout in enumerate(layouts):
        by_kind[len(layout.tails), layout.branches].append(position)
    groups: list[list[int]] = []
    for (tails, _), positions in by_kind.items():
        widths = [layouts[position].width(rows[position].prompt) * tails for position in positions]
        batches = length_batches(widths, rows[positions[0]].placed.scorer.budget)
        groups += [sorted((positions[place] for place in batch), key=lambda place: id(rows[place].placed)) for batch in batches]
    return groups


@torch.inference_mode()
def mixed_log_probabilities(backbone: Backbone, rows: Sequence[Asked]) -> list[Array32]:
    """``(C,)`` log-probabilities among its own labels for each row, from one forward pass.

    Args:
        backbone: the model of all of them.
        rows: those of one adapter together, as :func:`mixed_batches` puts them.
    """
    parts = [(placed, [row.prompt for row in own]) for placed, own in groupby(rows, key=lambda row: row.placed)]
    layouts = [placed.scorer.layout(prompts) for placed, prompts in parts]
    runs = [layout.rows(prompts) for layout, (_, prompts) in zip(layouts, parts, strict=True)]
    counts = [len(own) for own in runs]
    spans = [
        span for layout, (placed, prompts) in zip(layouts, parts, strict=True) for span in layout.spread(placed.spans(prompts))
    ]
    injections = [(placed.injection, count) for (placed, _), count in zip(parts, counts, strict=True)]
    with injected_by_row(backbone, injections), pooled(backbone, spans) as caught:
        states = states_of(backbone, [row for own in runs for row in own])  # (B, T, d)
    result: list[Array32] = []
    begin = 0
    for (placed, prompts), layout, own in zip(parts, layouts, torch.split(states, counts), strict=True):
        text = [caught[row] for row in range(begin, begin + len(own)) if row in caught]
        result += _read(placed, layout, own, prompts, text)
        begin += len(own)
    return result


def _read(
    placed: Placed, layout: Layout, states: Tensor, prompts: Sequence[Tokens], text: Sequence[Tensor]
) -> Iterator[Array32]:
    last, scores = placed.scorer.scored(states, prompts, layout)
    logs: Array32 = scores.log_softmax(dim=-1).cpu().numpy()
    if placed.readout is None:
        yield from logs
    else:
        yield from placed.readout.log_probabilities(with_text(last, text).float().cpu().numpy(), logs)
