"""What label words need of a model's states: where they are read, their scores, and the losses of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ifedicl.backbone.encoding import LabelTree
from ifedicl.backbone.layout import Layout, Row, last_places, read_at, widest
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.losses import Fed, Padded, row_sums, sum_places
from ifedicl.backbone.prompts import Tokens
from ifedicl.backbone.tree_attention import WIDEST
from ifedicl.backbone.word_steps import WordSteps
from ifedicl.core.transfer import to_device
from ifedicl.kinds.with_labels import LabelledTask

_MOST_READ = 512  # states whose logits over the whole vocabulary are computed at once: 256 MiB for 128,000 tokens


class ScoredWords(ABC):
    """The words of one task that are scored, on one model. The losses depend on how many of them an example may have."""

    def __init__(self, backbone: Backbone, task: LabelledTask, tree: LabelTree) -> None:
        """Prepare what does not depend on prompts."""
        self._backbone = backbone
        self._tree = tree
        self._normalises = task.normalise_length
        self._branching, self._by_paths = Layout.branching(tree), Layout.by_paths(tree)
        device, words = backbone.device, tree.words
        self._ended = {word: to_device(np.array(behind), device) for word, behind in tree.continuations().items()}
        self._first_tokens = to_device(np.array([word[0] for word in words]), device)
        self._steps = WordSteps.of(tree, device)
        self._lengths = to_device(np.array([len(word) for word in words], dtype=np.float32), device)

    def layout(self, prompts: Sequence[Tokens], before: int = 0) -> Layout:
        """How the label words follow the prompts of one pass: in branches, if the model can branch at their length.

        ``before`` tokens stand before all prompts.
        """
        prompt = max(prompts, key=len)
        longest, widest = (before + layout.width(prompt) for layout in (self._by_paths, self._branching))
        fits = longest <= self._backbone.branch_limit and widest <= WIDEST
        return self._branching if fits else self._by_paths

    def scored(self, states: Tensor, prompts: Sequence[Tokens], layout: Layout) -> tuple[Tensor, Tensor]:
        """``(B, d)`` states that predict the first token of the label word, and ``(B, C)`` label scores.

        ``states`` are the ``(B·R, T, d)`` last hidden states of the rows that ``layout`` makes of the ``B`` prompts.
        """
        width = states.shape[1]
        last = read_at(states, to_device(last_places(prompts, width, len(layout.tails)), states.device))
        if self._tree.is_flat:
            return last, self._scores(last)
        return last, self._scores(read_at(states, to_device(layout.places(prompts, width), states.device)))

    def _scores(self, read: Tensor) -> Tensor:
        """``(B, C)`` scores from states ``(B, N, d)`` at the tree's nodes; of one-token words from the last, ``(B, d)``."""
        if self._tree.is_flat:
            # One token each: the normaliser over the vocabulary is the same for all, so only these logits are needed.
            return self._backbone.logits(read, self._first_tokens)
        parts = torch.split(read, max(1, _MOST_READ // len(self._tree.nodes)))
        scores = torch.cat([self._word_scores(part) for part in parts])
        return scores / self._lengths if self._normalises else scores

    def _word_scores(self, read: Tensor) -> Tensor:
        logs = self._backbone.logits(read).log_softmax(dim=-1)  # (B, N, V)
        steps = self._steps
        chosen = logs.flatten(1).index_select(1, steps.nodes * logs.shape[-1] + steps.tokens)  # (B, S)
        by_step = functional.pad(chosen, (0, 1)).index_select(1, steps.places.flatten()).view(len(read), *steps.places.shape)
        scores = sum(by_step.unbind(1), torch.zeros_like(by_step[:, 0]))  # (B, C), each word's tokens in their order
        if self._ended:
            ends = [self._log_ends(logs[:, node], word) for word, node in steps.ends.items()]
            scores = scores.index_add(1, steps.ended, torch.stack(ends, dim=1))
        return scores

    def _log_ends(self, logs: Tensor, word: Tokens) -> Tensor:
        """``(...)`` of ``(..., V)``: the log-probability that no other label word goes on from ``word``, of those behind it."""
        return logs.index_fill(-1, self._ended[word], -torch.inf).logsumexp(dim=-1)

    @abstractmethod
    def label_fed(self, prompts: Sequence[Tokens], labels: Sequence[Any], padded: Padded) -> Fed:
        """As :meth:`Answers.label_fed`."""

    @abstractmethod
    def label_losses(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`Answers.label_losses`."""

    @abstractmethod
    def word_fed(self, prompts: Sequence[Tokens], labels: Sequence[Any], padded: Padded) -> Fed:
        """As :meth:`Answers.word_fed`."""

    @abstractmethod
    def word_losses(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`Answers.word_losses`."""

    def _scored_fed(self, prompts: Sequence[Tokens], labels: npt.NDArray[Any], padded: Padded) -> Fed:
        """Where :meth:`_scores` are read, and the labels."""
        layout = self.layout(prompts)
        rows = layout.rows(prompts)
        width = padded(widest(rows))
        places = last_places(prompts, width, len(layout.tails)) if self._tree.is_flat else layout.places(prompts, width)
        return self._fed(rows, width, places=places, labels=labels)

    def _fed(self, rows: Sequence[Row], width: int, **arrays: npt.NDArray[Any]) -> Fed:
        return Fed(rows, width, {name: to_device(array, self._backbone.device) for name, array in arrays.items()})


class LabelWords(ScoredWords):
    """The label words of one classification."""

    def label_fed(self, prompts: Sequence[Tokens], labels: Sequence[int], padded: Padded) -> Fed:
        """For :meth:`label_losses`."""
        return self._scored_fed(prompts, np.array(labels), padded)

    def label_losses(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """``-log P(label | prompt)`` among the labels."""
        return functional.cross_entropy(self._scores(read_at(states, fed["places"])), fed["labels"], reduction="none")

    def word_fed(self, prompts: Sequence[Tokens], labels: Sequence[int], padded: Padded) -> Fed:
        """For :meth:`word_losses`. A word that begins another is run with its last token, whose state says whether it ends."""
        words = [self._tree.words[label] for label in labels]
        rows = [Row(p + (word if word in self._ended else word[:-1])) for p, word in zip(prompts, words, strict=True)]
        width = padded(widest(rows))
        lengths = [len(word) for word in words]
        columns = [len(prompt) - 1 + step for prompt, word in zip(prompts, words, strict=True) for step in range(len(word))]
        places = np.array([row for row, word in enumerate(words) for _ in word]) * width + np.array(columns)
        fed = {"places": places, "targets": np.array([token for word in words for token in word])}
        if max(lengths) > 1:
            fed["sums"] = sum_places(lengths)
        if self._normalises:
            fed["lengths"] = np.array(lengths, dtype=np.float32)
        for number, word in enumerate(self._ended):  # each with the same tensors in every batch, whichever words are in it
            of_word = [row for row, other in enumerate(words) if other == word]
            if of_word:
                fed[f"rows of {number}"] = np.array(of_word)
                fed[f"ends of {number}"] = np.array([row * width + len(rows[row].tokens) - 1 for row in of_word])
        return self._fed(rows, width, **fed)

    def word_losses(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """``-log P(label word | prompt)`` over the whole vocabulary (paper Eq. 6).

        It is divided by the number of tokens if the task normalises lengths. A word that begins another must also end: that no
        longer word goes on from it counts as one more token would.
        """
        read = self._backbone.logits(read_at(states, fed["places"]))  # (sum of word lengths, V)
        totals = functional.cross_entropy(read, fed["targets"], reduction="none")
        if "sums" in fed:
            totals = row_sums(totals, fed["sums"])
        for number, word in enumerate(self._ended):
            if f"rows of {number}" in fed:
                logs = self._backbone.logits(read_at(states, fed[f"ends of {number}"])).log_softmax(dim=-1)
                totals = totals.index_add(0, fed[f"rows of {number}"], -self._log_ends(logs, word))
        return totals / fed["lengths"] if "lengths" in fed else totals
