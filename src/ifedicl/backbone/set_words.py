"""The losses of tasks with several labels: a yes or no for each label word, beside the threshold word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional

from ifedicl.backbone.label_words import ScoredWords
from ifedicl.backbone.layout import read_at
from ifedicl.backbone.losses import Fed, Padded
from ifedicl.backbone.prompts import Tokens
from ifedicl.kinds.label_sets import LabelSet, has_label


class SetWords(ScoredWords):
    """The threshold word and the label words of one task."""

    def label_fed(self, prompts: Sequence[Tokens], labels: Sequence[LabelSet], padded: Padded) -> Fed:
        """For :meth:`label_losses`."""
        targets = has_label(labels, len(self._tree.words) - 1).astype(np.float32)
        return self._scored_fed(prompts, targets, padded)

    def label_losses(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """``-log P(labels | prompt)``: binary cross-entropies, summed over labels."""
        scores = self._scores(read_at(states, fed["places"]))
        odds = scores[:, 1:] - scores[:, :1]
        return functional.binary_cross_entropy_with_logits(odds, fed["labels"], reduction="none").sum(dim=1)

    word_fed, word_losses = label_fed, label_losses
    """The same: settings refuse a loss over the whole vocabulary."""
