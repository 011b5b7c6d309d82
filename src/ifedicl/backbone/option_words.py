"""What options need of a model's states: their scores, and the losses of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ifedicl.backbone.layout import read_at, widest
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.losses import Fed, Padded, row_sums, sum_places
from ifedicl.backbone.option_layout import OptionLayout
from ifedicl.backbone.prompts import Tokens
from ifedicl.core.transfer import to_device
from ifedicl.kinds.choices import Options
from ifedicl.kinds.choose import ChooseTask

_MOST_READ = 512  # states whose logits over the whole vocabulary are computed at once: 256 MiB for 128,000 tokens


@dataclass(frozen=True, eq=False)
class OptionWords:
    """The options of the examples of one task, on one model."""

    backbone: Backbone
    task: ChooseTask

    def layouts(self, prompts: Sequence[Tokens], labels: Sequence[Options], *, whole: bool = False) -> list[OptionLayout]:
        """How the options follow each prompt."""
        return [OptionLayout.of(self.backbone, prompt, own, whole=whole) for prompt, own in zip(prompts, labels, strict=True)]

    def places(self, layouts: Sequence[OptionLayout], labels: Sequence[Options], width: int) -> dict[str, npt.NDArray[Any]]:
        """For :meth:`scores`: of a pass of these examples, whose rows are padded to ``width`` tokens."""
        places, targets, lengths, first = list[int](), list[int](), list[int](), 0
        for layout, own in zip(layouts, labels, strict=True):
            for word, read in zip(own.words, layout.reads, strict=True):
                places += [(first + row) * width + column for row, column in read]
                targets += word
                lengths.append(len(word))
            first += len(layout.rows)
        most = max(len(own.words) for own in labels)
        table, option = np.full((len(labels), most), len(lengths), dtype=np.int64), 0
        for row, own in enumerate(labels):
            table[row, : len(own.words)] = np.arange(option, option + len(own.words))
            option += len(own.words)
        return {
            "places": np.array(places),
            "targets": np.array(targets),
            "sums": sum_places(lengths),
            "lengths": np.array(lengths, dtype=np.float32),
            "table": table,
        }

    def scores(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """``(B, K)`` scores of each example's options from the ``(B·R, T, d)`` states of a pass; -∞ behind the last option."""
        totals = torch.cat([self._totals(states, fed), states.new_full((1,), -torch.inf, dtype=torch.float32)])
        return totals.index_select(0, fed["table"].flatten()).view(fed["table"].shape)

    def _totals(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """``(M,)``: the log-probability of each option."""
        parts = zip(torch.split(fed["places"], _MOST_READ), torch.split(fed["targets"], _MOST_READ), strict=True)
        logs = [
            -functional.cross_entropy(self.backbone.logits(read_at(states, places)), targets, reduction="none")
            for places, targets in parts
        ]
        totals = row_sums(torch.cat(logs), fed["sums"])
        return totals / fed["lengths"] if self.task.normalise_length else totals

    def label_fed(self, prompts: Sequence[Tokens], labels: Sequence[Options], padded: Padded) -> Fed:
        """For :meth:`label_losses`."""
        layouts = self.layouts(prompts, labels)
        rows = [row for layout in layouts for row in layout.rows]
        width = padded(widest(rows))
        return self._fed(rows, width, self.places(layouts, labels, width) | {"labels": np.array([own.which for own in labels])})

    def label_losses(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """``-log P(option | prompt)`` among the example's options."""
        return functional.cross_entropy(self.scores(states, fed), fed["labels"], reduction="none")

    def word_fed(self, prompts: Sequence[Tokens], labels: Sequence[Options], padded: Padded) -> Fed:
        """For :meth:`word_losses`: the right option is run alone."""
        alone = [Options((own.words[own.which],), 0, own.group) for own in labels]
        return self.label_fed(prompts, alone, padded)

    def word_losses(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """``-log P(option | prompt)`` over the whole vocabulary (paper Eq. 6), by token if the task normalises lengths."""
        return -self.scores(states, fed)[:, 0]

    def _fed(self, rows: Sequence[Any], width: int, arrays: Mapping[str, npt.NDArray[Any]]) -> Fed:
        return Fed(rows, width, {name: to_device(array, self.backbone.device) for name, array in arrays.items()})
