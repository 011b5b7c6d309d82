"""Texts for several adapters in one forward pass: injection and readout differ from row to row.

Words of a task behind a prompt share passes. Options of each text, and text that is written, have passes of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.hooks import Injection, changed_by, injected_by_row
from ifedicl.backbone.layout import Layout, states_of
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.passes import length_batches
from ifedicl.backbone.pooling import Means, Span, text_means, with_text
from ifedicl.backbone.prompts import EncodedExamples, Tokens
from ifedicl.backbone.readings import Reading
from ifedicl.backbone.scoring import WordScorer
from ifedicl.core.readout import Readout
from ifedicl.core.transfer import to_host
from ifedicl.core.vectors import Array32


@dataclass(frozen=True, eq=False)
class Placed:
    """An adapter on the model, or the raw model with the adapter's task, whose rows share passes with those of others.

    Attributes:
        scorer: of the task.
        injection: None: the raw model.
        readout: None: labels are scored by their words.
    """

    scorer: WordScorer
    injection: Injection | None = None
    readout: Readout | None = None

    def spans(self, prompts: Sequence[Tokens]) -> list[Span | None]:
        """The span of text that the readout reads, for each prompt."""
        return self.scorer.spans(prompts, () if self.readout is None else self.readout.pooled_layers)


@dataclass(frozen=True, eq=False)
class Apart:
    """As :class:`Placed`, of a task whose rows share no pass with those of another adapter."""

    scorer: BaseScorer
    injection: Injection | None = None
    readout: Readout | None = None

    def scores(self, examples: EncodedExamples, on_pass: Callable[[], None]) -> list[npt.NDArray[Any]]:
        """For each example the rows of :meth:`BaseScorer.scores`; ``on_pass`` is called before each pass, and may raise."""
        scorer = self.scorer.shared(on_pass)
        with nullcontext() if self.injection is None else changed_by(scorer.backbone, self.injection):
            scores = scorer.scores(examples, readout=self.readout)
        return np.split(scores, np.cumsum([scorer.rows_of(label) for label in examples.labels])[:-1])


def on_model(scorer: BaseScorer, injection: Injection | None = None, readout: Readout | None = None) -> Placed | Apart:
    """An adapter on the model, or with the scorer alone the raw model, in passes that its scorer allows."""
    if isinstance(scorer, WordScorer):
        return Placed(scorer, injection, readout)
    return Apart(scorer, injection, readout)


@dataclass(frozen=True, eq=False)
class Asked:
    """One encoded text and the adapter that labels it."""

    placed: Placed
    prompt: Tokens


def mixed_batches(rows: Sequence[Asked]) -> list[list[int]]:
    """Positions of ``rows`` in groups, one for each forward pass; within a group, rows of one adapter are adjacent."""
    by_kind: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)  # rows of one pass have the same layout
    layouts = [row.placed.scorer.layout([row.prompt]) for row in rows]
    for position, layout in enumerate(layouts):
        by_kind[len(layout.tails), layout.branches].append(position)
    groups: list[list[int]] = []
    for (tails, _), positions in by_kind.items():
        widths = [layouts[position].width(rows[position].prompt) * tails for position in positions]
        batches = length_batches(widths, rows[positions[0]].placed.scorer.budget)
        groups += [sorted((positions[index] for index in batch), key=lambda row: id(rows[row].placed)) for batch in batches]
    return groups


@torch.inference_mode()
def mixed_log_probabilities(backbone: Backbone, rows: Sequence[Asked]) -> list[Array32]:
    """For each row ``(C,)`` log-probabilities among its adapter's labels, from one forward pass.

    ``rows`` are one group of :func:`mixed_batches`.
    """
    parts = [(placed, [row.prompt for row in group]) for placed, group in groupby(rows, key=lambda row: row.placed)]
    layouts = [placed.scorer.layout(prompts) for placed, prompts in parts]
    runs = [layout.rows(prompts) for layout, (_, prompts) in zip(layouts, parts, strict=True)]
    counts = [len(run) for run in runs]
    spans = [
        span for layout, (placed, prompts) in zip(layouts, parts, strict=True) for span in layout.spread(placed.spans(prompts))
    ]
    injections = [(placed.injection, count) for (placed, _), count in zip(parts, counts, strict=True)]
    with injected_by_row(backbone, injections), text_means(backbone, spans) as means:
        states = states_of(backbone, [row for run in runs for row in run])  # (B, T, d)
    result: list[Array32] = []
    begin = 0
    for (placed, prompts), layout, part in zip(parts, layouts, torch.split(states, counts), strict=True):
        own = {(row - begin, layer): mean for (row, layer), mean in means.items() if row >= begin}
        result += _read(placed, layout, part, prompts, spans[begin : begin + len(part)], own)
        begin += len(part)
    return result


def _read(
    placed: Placed, layout: Layout, states: Tensor, prompts: Sequence[Tokens], spans: Sequence[Span | None], means: Means
) -> Iterator[Array32]:
    last, scores = placed.scorer.words.scored(states, prompts, layout)
    reading = Reading(*to_host(with_text(last, spans, means), scores.log_softmax(dim=-1)))
    yield from reading.log_probabilities(placed.readout)
