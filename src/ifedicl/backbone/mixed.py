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
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.pooling import Span, pooled
from ifedicl.backbone.scoring import Scorer, length_batches, right_padded, with_text
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
        """Where the readout looks at the text, for each sequence that is run."""
        layer = None if self.readout is None else self.readout.pooled_layer
        return self.scorer.spread(self.scorer.spans(prompts, layer))


@dataclass(frozen=True, eq=False)
class Row:
    """One encoded text and who is asked about it."""

    placed: Placed
    prompt: Tokens


def mixed_batches(rows: Sequence[Row]) -> list[list[int]]:
    """Positions of ``rows`` in groups that each make one forward pass; within a group, rows of one adapter stand together."""
    by_paths: defaultdict[int, list[int]] = defaultdict(list)  # rows that run for more paths of label words are wider
    for position, row in enumerate(rows):
        by_paths[row.placed.scorer.paths].append(position)
    groups: list[list[int]] = []
    for paths, positions in by_paths.items():
        widths = [rows[position].placed.scorer.longest(rows[position].prompt) * paths for position in positions]
        batches = length_batches(widths, rows[positions[0]].placed.scorer.budget)
        groups += [sorted((positions[place] for place in batch), key=lambda place: id(rows[place].placed)) for batch in batches]
    return groups


@torch.inference_mode()
def mixed_log_probabilities(backbone: Backbone, rows: Sequence[Row]) -> list[Array32]:
    """``(C,)`` log-probabilities among its own labels for each row, from one forward pass.

    Args:
        backbone: the model of all of them.
        rows: those of one adapter together, as :func:`mixed_batches` puts them.
    """
    parts = [(placed, [row.prompt for row in own]) for placed, own in groupby(rows, key=lambda row: row.placed)]
    sequences = [placed.scorer.sequences(prompts) for placed, prompts in parts]
    padded = right_padded([sequence for own in sequences for sequence in own], backbone.device)
    counts = [len(own) for own in sequences]
    spans = [span for placed, prompts in parts for span in placed.spans(prompts)]
    injections = [(placed.injection, count) for (placed, _), count in zip(parts, counts, strict=True)]
    with injected_by_row(backbone, injections), pooled(backbone, spans) as caught:
        states = backbone.hidden_states(padded)  # (B, T, d)
    result: list[Array32] = []
    begin = 0
    for (placed, prompts), own in zip(parts, torch.split(states, counts), strict=True):
        text = [caught[row] for row in range(begin, begin + len(own)) if row in caught]
        result += _read(placed, own, prompts, text)
        begin += len(own)
    return result


def _read(placed: Placed, states: Tensor, prompts: Sequence[Tokens], text: Sequence[Tensor]) -> Iterator[Array32]:
    last, scores = placed.scorer.scored(states, prompts)
    logs: Array32 = scores.log_softmax(dim=-1).cpu().numpy()
    if placed.readout is None:
        yield from logs
    else:
        yield from placed.readout.log_probabilities(with_text(last, text).float().cpu().numpy(), logs)
