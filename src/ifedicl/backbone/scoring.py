"""Log-probabilities of words behind prompts: batches by length, right-padded; the LM head runs only where a label is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.backbone.base_scorer import BaseScorer, last_states
from ifedicl.backbone.encoding import Encoder
from ifedicl.backbone.label_words import LabelWords, ScoredWords
from ifedicl.backbone.layout import Layout
from ifedicl.backbone.load import Backbone, Prefix
from ifedicl.backbone.lock import exclusive
from ifedicl.backbone.passes import length_batches
from ifedicl.backbone.pooling import Span, text_means, with_text
from ifedicl.backbone.prompts import EncodedExamples, Prompts, Tokens, shared_length
from ifedicl.backbone.readings import Reading
from ifedicl.core.readout import Readout, hidden_count
from ifedicl.core.transfer import to_host
from ifedicl.kinds.classify import Task
from ifedicl.kinds.examples import AnyExample

_HELD = 2**25  # numbers of hidden states that wait on the device: 128 MiB
_FEWEST_SHARED = 32  # tokens: running a shorter beginning again is cheaper than copying its cache to every row


class WordScorer(BaseScorer):
    """Scores words behind prompts, those of a :class:`LabelledTask`: one score for each."""

    encoder: Encoder
    words: ScoredWords

    def training_batches(self, prompts: Sequence[Tokens], labels: Sequence[Any]) -> list[list[int]]:
        del labels  # all label words are run
        return self.batches(prompts, trains=True)

    def widths(self, examples: EncodedExamples) -> list[int]:
        return [self.layout([prompt]).width(prompt) for prompt in examples.prompts.tokens]

    def reading(
        self, examples: EncodedExamples, pooled_layers: tuple[int, ...] = (), *, alone: bool = False, words: bool = True
    ) -> Reading:
        return self.read(examples.prompts, pooled_layers, alone=alone, words=words)

    def scores(
        self,
        examples: EncodedExamples,
        *,
        readout: Readout | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        return self.log_probabilities(examples.prompts, readout=readout, on_progress=on_progress)

    def label_scores(self, prompts: Sequence[Tokens], prefix: Prefix | None = None) -> Tensor:
        """``(B, C)`` float32: ``log P(label word | prompt)`` up to a constant in each row.

        A softmax over ``C`` gives the probabilities among the labels. With a ``prefix``, the ``B`` prompts are what follows it.
        """
        return self._read(prompts, prefix)[1]

    def log_probabilities(
        self, prompts: Prompts, *, readout: Readout | None = None, on_progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """``(N, C)``: ``log P(label | prompt)`` among the labels, for any number of prompts.

        A long beginning that all prompts share (demonstrations, instructions) is run once. Without a readout labels are scored
        by their words. ``on_progress`` is called with the number of prompts just done.
        """
        result = np.empty((len(prompts.tokens), self.task.columns), dtype=np.float32)
        layers, words = ((), True) if readout is None else (readout.pooled_layers, readout.reads_words)
        for positions, reading in self._blocks(prompts, layers, on_progress, words=words):
            result[positions] = reading.log_probabilities(readout)
        return result

    def read(
        self, prompts: Prompts, pooled_layers: tuple[int, ...] = (), *, alone: bool = False, words: bool = True
    ) -> Reading:
        """Hidden states and log-probabilities of the label words, for any number of prompts.

        Args:
            prompts: encoded texts.
            pooled_layers: the text's mean states at the inputs of these layers (1 to ``L``) are read too.
            alone: each prompt in a pass of its own. In a pass of several, one changes the last bits of another.
            words: False: the label words are not run, and all labels have the same log-probability.
        """
        hidden = hidden_count(self.backbone.width, pooled_layers)
        states = np.empty((len(prompts.tokens), hidden), dtype=np.float32)
        logs = np.empty((len(prompts.tokens), self.task.columns), dtype=np.float32)
        parts = [Prompts((tokens,), 0) for tokens in prompts.tokens] if alone else [prompts]
        first = 0
        for part in parts:
            for positions, reading in self._blocks(part, pooled_layers, None, words=words):
                rows = [first + position for position in positions]
                states[rows], logs[rows] = reading.states, reading.logs
            first += len(part.tokens)
        return Reading(states, logs)

    def _blocks(
        self, prompts: Prompts, pooled_layers: tuple[int, ...], on_progress: Callable[[int], None] | None, *, words: bool
    ) -> Iterator[tuple[list[int], Reading]]:
        """Readings of many passes with their prompts' positions. They leave the device together, for each :data:`_HELD`."""
        positions, states, logs = list[int](), list[Tensor](), list[Tensor]()
        for batch, of_batch, batch_logs in self._readings(prompts, pooled_layers, on_progress, words=words):
            positions += batch
            states.append(of_batch)
            logs.append(batch_logs)
            if len(positions) * of_batch.shape[1] >= _HELD:
                yield positions, Reading(*to_host(torch.cat(states), torch.cat(logs)))
                positions, states, logs = [], [], []
        if positions:
            yield positions, Reading(*to_host(torch.cat(states), torch.cat(logs)))

    def batches(
        self, prompts: Sequence[Tokens], prefix: Prefix | None = None, *, trains: bool = False, words: bool = True
    ) -> list[list[int]]:
        """Positions of ``prompts`` in groups, one for each forward pass; with a ``prefix``, prompts are what follows it.

        A pass that ``trains`` keeps what its gradient needs, so memory bounds its tokens too.
        """
        before, share = prefix.length if prefix else 0, self.budget.tokens / self.budget.remembered
        sizes = []
        for tokens in prompts:
            layout = self.layout([tokens], before) if words else Layout.BARE
            width = self.backbone.padded(layout.width(tokens)) if trains else layout.width(tokens)
            sizes.append(len(layout.tails) * max(width, math.ceil((before + width) * share)))
        bound = self.backbone.trained_tokens if trains else None
        return length_batches(sizes, self.budget if bound is None else self.budget.within(bound))

    def layout(self, prompts: Sequence[Tokens], before: int = 0) -> Layout:
        """As :meth:`ScoredWords.layout`."""
        return self.words.layout(prompts, before)

    def _without_prefix(self, prompts: Sequence[Tokens], most: int | None) -> tuple[Prefix | None, Sequence[Tokens]]:
        """The beginning of at most ``most`` tokens that all prompts share, already run, and what follows it in each prompt.

        A beginning that is too short to be worth it is None.
        """
        if len(prompts) < 2 or self.upper is not None:  # the layer cache holds whole sequences
            return None, prompts
        first, last = min(prompts), max(prompts)
        longest = min([*(len(prompt) - 1 for prompt in prompts), *([] if most is None else [most])])
        shared = shared_length(first, last, longest)
        if shared < _FEWEST_SHARED:
            return None, prompts
        with exclusive(self.backbone):
            return self.backbone.prefix(first[:shared]), [prompt[shared:] for prompt in prompts]

    @torch.inference_mode()
    def _readings(
        self, prompts: Prompts, pooled_layers: tuple[int, ...], on_progress: Callable[[int], None] | None, *, words: bool
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """For each batch: positions, ``(B, h)`` states and ``(B, C)`` log-probabilities, both float32."""
        spans = self.spans(prompts.tokens, pooled_layers)
        text_begins = min((span.first for span in spans if span), default=0) if pooled_layers else None
        prefix, rests = self._without_prefix(prompts.tokens, text_begins)
        for batch in self.batches(rests, prefix, words=words):
            of_batch = [_behind(spans[position], prefix) for position in batch]
            states, scores = self._read([rests[position] for position in batch], prefix, of_batch, words=words)
            yield batch, states, scores.log_softmax(dim=-1)
            if on_progress is not None:
                on_progress(len(batch))

    def _read(
        self, prompts: Sequence[Tokens], prefix: Prefix | None, spans: Sequence[Span | None] = (), *, words: bool = True
    ) -> tuple[Tensor, Tensor]:
        """``(B, h)`` float32 states that predict the first token of the label word, with text means; ``(B, C)`` scores."""
        layout = self.layout(prompts, prefix.length if prefix else 0) if words else Layout.BARE
        rows, of_rows, upper = layout.rows(prompts), layout.spread(spans), self.upper if prefix is None else None
        with text_means(self.backbone, of_rows, first_layer=upper.first if upper else 0) as means:
            run = self.states(rows, prefix)
            if words:
                states, scores = self.words.scored(run, prompts, layout)
            else:
                states = last_states(run, prompts)
                scores = run.new_zeros((len(prompts), self.task.columns), dtype=torch.float32)
            if upper and of_rows:
                means |= upper.text_means(rows, of_rows)
        return with_text(states, of_rows, means), scores


class Scorer(WordScorer):
    """Scores the label words of a classification."""

    task: Task
    words: LabelWords

    def __init__(
        self, backbone: Backbone, task: Task, *, first_layer: int = 0, on_pass: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare the label words.

        Args:
            backbone: the frozen model.
            task: what is asked.
            first_layer: the lowest that is ever injected; the states that enter it are computed once for each prompt and kept.
            on_pass: called before each forward pass; what it raises ends the work.

        Raises:
            TaskError: as :class:`Encoder`.
        """
        super().__init__(backbone, first_layer=first_layer, on_pass=on_pass)
        self.task = task
        self.encoder = Encoder(backbone, task)
        self.words = LabelWords(backbone, task, self.encoder.tree)

    def encoded(self, examples: Sequence[AnyExample]) -> EncodedExamples:
        prompts = self.encoder.prompts([example.text for example in examples])
        return EncodedExamples(prompts, tuple(map(self.task.class_of, examples)))

    def demonstrations(self, prompts: Sequence[Tokens], labels: Sequence[int], position: str) -> list[Tokens]:
        if position == "prompt":
            return list(prompts)
        return [prompt + self.encoder.tree.words[label] for prompt, label in zip(prompts, labels, strict=True)]

    def classes_of(self, labels: Sequence[int]) -> list[int]:
        return list(labels)


def _behind(span: Span | None, prefix: Prefix | None) -> Span | None:
    """The span, counted from the end of the prefix."""
    if span is None or prefix is None:
        return span
    return replace(span, first=span.first - prefix.length, end=span.end - prefix.length)
