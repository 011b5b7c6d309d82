"""Label log-probabilities of prompts: batches by length, right-padded; the LM head runs only where a label is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ifedicl.backbone.encoding import EncodedExamples, Encoder, Prompts, Tokens, shared_length
from ifedicl.backbone.layer_cache import UpperLayers
from ifedicl.backbone.layout import Layout, Row, states_of, tokens_at
from ifedicl.backbone.load import Backbone, Prefix
from ifedicl.backbone.lock import exclusive
from ifedicl.backbone.passes import BUDGETS, length_batches
from ifedicl.backbone.pooling import Span, text_means, with_text
from ifedicl.backbone.readings import Reading
from ifedicl.backbone.tree_attention import WIDEST
from ifedicl.backbone.word_steps import WordSteps
from ifedicl.core.readout import Readout, hidden_count
from ifedicl.core.transfer import to_device, to_host
from ifedicl.data import Example
from ifedicl.task import Task

_MOST_READ = 512  # states whose logits over the whole vocabulary are computed at once: 256 MiB for 128,000 tokens
_HELD = 2**25  # numbers of hidden states that wait on the device: 128 MiB
_FEWEST_SHARED = 32  # tokens: running a shorter beginning again is cheaper than copying its cache to every row


class Scorer:
    """Scores the label words of one task with one model. Injections around it change what it computes.

    Several threads may use it.
    """

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
        self.backbone = backbone
        self.on_pass = on_pass
        self._upper = UpperLayers(backbone, first_layer) if first_layer else None
        self.task = task
        self.encoder = Encoder(backbone, task)
        self.budget = BUDGETS[backbone.device.type]
        self._tree = self.encoder.tree
        self._branching, self._by_paths = Layout.branching(self._tree), Layout.by_paths(self._tree)
        device, words = backbone.device, self._tree.words
        self._steps = WordSteps.of(self._tree, device)
        self._ended = {word: to_device(np.array(behind), device) for word, behind in self._tree.continuations().items()}
        self._first_tokens = to_device(np.array([word[0] for word in words]), device)
        self._word_lengths = to_device(np.array([len(word) for word in words], dtype=np.float32), device)

    def shared(self, on_pass: Callable[[], None]) -> Self:
        """The same scorer with another ``on_pass``. Both use the same tokens and the same kept states."""
        twin = copy(self)
        twin.on_pass = on_pass
        return twin

    def encoded(self, examples: Sequence[Example]) -> EncodedExamples:
        """Encode labelled texts.

        Raises:
            DataError: a text has no tokens.
        """
        prompts = self.encoder.prompts([example.text for example in examples])
        return EncodedExamples(prompts, tuple(self.task.index(example.label) for example in examples))

    def label_scores(self, prompts: Sequence[Tokens], prefix: Prefix | None = None) -> Tensor:
        """``(B, C)`` float32: ``log P(label word | prompt)`` up to a constant in each row.

        A softmax over ``C`` gives the probabilities among the labels. With a ``prefix``, the ``B`` prompts are what follows it.
        """
        return self._read(prompts, prefix)[1]

    def word_losses(self, prompts: Sequence[Tokens], labels: Sequence[int]) -> Tensor:
        """``(B,)`` float32: ``-log P(label word | prompt)`` over the whole vocabulary in nats (paper Eq. 6).

        It is divided by the number of tokens if the task normalises lengths. ``labels`` are positions in the task. A word that
        begins another must also end: that no longer word goes on from it counts as one more token would.
        """
        words = [self._tree.words[label] for label in labels]
        run = [prompt + (word if word in self._ended else word[:-1]) for prompt, word in zip(prompts, words, strict=True)]
        states = self._states(list(map(Row, run)), None)  # (B, T, d)
        rows = np.array([row for row, word in enumerate(words) for _ in word])
        columns = [len(prompt) - 1 + step for prompt, word in zip(prompts, words, strict=True) for step in range(len(word))]
        targets = to_device(np.array([token for word in words for token in word]), states.device)
        read = self.backbone.logits(tokens_at(states, rows, np.array(columns)))  # (sum of word lengths, V)
        totals = _row_sums(functional.cross_entropy(read, targets, reduction="none"), [len(word) for word in words])
        ended = [row for row, word in enumerate(words) if word in self._ended]
        if ended:
            ends = np.array([len(run[row]) - 1 for row in ended])
            logs = self.backbone.logits(tokens_at(states, np.array(ended), ends)).log_softmax(dim=-1)  # (E, V)
            logs = torch.stack([self._log_ends(logs[at], words[row]) for at, row in enumerate(ended)])
            totals = totals.index_add(0, to_device(np.array(ended), states.device), -logs)
        if not self.task.normalise_length:
            return totals
        return totals / to_device(np.array([len(word) for word in words], dtype=np.float32), states.device)

    def label_losses(self, prompts: Sequence[Tokens], labels: Sequence[int]) -> Tensor:
        """``(B,)`` float32: ``-log P(label | prompt)`` among the labels, in nats."""
        scores = self.label_scores(prompts)
        return functional.cross_entropy(scores, to_device(np.array(labels), scores.device), reduction="none")

    def log_probabilities(
        self, prompts: Prompts, *, readout: Readout | None = None, on_progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """``(N, C)``: ``log P(label | prompt)`` among the labels, for any number of prompts.

        A long beginning that all prompts share (demonstrations, instructions) is run once. Without a readout labels are scored
        by their words. ``on_progress`` is called with the number of prompts just done.
        """
        result = np.empty((len(prompts.tokens), len(self.task.labels)), dtype=np.float32)
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
        logs = np.empty((len(prompts.tokens), len(self.task.labels)), dtype=np.float32)
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

    @torch.inference_mode()
    def features(self, prompts: Prompts) -> npt.NDArray[np.float32]:
        """``(N, d)``: the last hidden state at each prompt's last token, which predicts the label word."""
        groups, states = length_batches([len(tokens) for tokens in prompts.tokens], self.budget), list[Tensor]()
        for batch in groups:
            tokens = [prompts.tokens[position] for position in batch]
            states.append(_last(self._states([Row(prompt) for prompt in tokens], None), tokens).float())
        result = np.empty((len(prompts.tokens), self.backbone.width), dtype=np.float32)
        if groups:
            (result[[position for batch in groups for position in batch]],) = to_host(torch.cat(states))
        return result

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
            width = layout.width(tokens)
            sizes.append(len(layout.tails) * max(width, math.ceil((before + width) * share)))
        bound = self.backbone.trained_tokens if trains else None
        return length_batches(sizes, self.budget if bound is None else self.budget.within(bound))

    def layout(self, prompts: Sequence[Tokens], before: int = 0) -> Layout:
        """How the label words follow the prompts of one pass: in branches, if the model can branch at their length.

        ``before`` tokens stand before all prompts.
        """
        prompt = max(prompts, key=len)
        longest, widest = (before + layout.width(prompt) for layout in (self._by_paths, self._branching))
        fits = longest <= self.backbone.branch_limit and widest <= WIDEST
        return self._branching if fits else self._by_paths

    def _without_prefix(self, prompts: Sequence[Tokens], most: int | None) -> tuple[Prefix | None, Sequence[Tokens]]:
        """The beginning of at most ``most`` tokens that all prompts share, already run, and what follows it in each prompt.

        A beginning that is too short to be worth it is None.
        """
        if len(prompts) < 2 or self._upper is not None:  # the layer cache holds whole sequences
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

    def spans(self, prompts: Sequence[Tokens], pooled_layers: tuple[int, ...]) -> list[Span | None]:
        """The span of each prompt's text at these layers; without a layer None for each prompt."""
        if not pooled_layers:
            return [None] * len(prompts)
        texts = [self.encoder.text_span(prompt) for prompt in prompts]
        return [Span(pooled_layers, text.start, text.stop) for text in texts]

    def scored(self, states: Tensor, prompts: Sequence[Tokens], layout: Layout) -> tuple[Tensor, Tensor]:
        """``(B, d)`` states that predict the first token of the label word, and ``(B, C)`` label scores.

        ``states`` are the ``(B·R, T, d)`` last hidden states of the rows that ``layout`` makes of the ``B`` prompts.
        """
        last = _last(states, prompts, len(layout.tails))
        if not self._tree.is_flat:
            return last, self._tree_scores(layout.read(states, prompts))
        # One token each: the normaliser over the vocabulary is the same for all, so only these logits are needed.
        return last, self.backbone.logits(last, self._first_tokens)

    def _read(
        self, prompts: Sequence[Tokens], prefix: Prefix | None, spans: Sequence[Span | None] = (), *, words: bool = True
    ) -> tuple[Tensor, Tensor]:
        """``(B, h)`` float32 states that predict the first token of the label word, with text means; ``(B, C)`` scores."""
        layout = self.layout(prompts, prefix.length if prefix else 0) if words else Layout.BARE
        rows, of_rows, upper = layout.rows(prompts), layout.spread(spans), self._upper if prefix is None else None
        with text_means(self.backbone, of_rows, first_layer=upper.first if upper else 0) as means:
            run = self._states(rows, prefix)
            if words:
                states, scores = self.scored(run, prompts, layout)
            else:
                states, scores = _last(run, prompts), run.new_zeros((len(prompts), len(self.task.labels)), dtype=torch.float32)
            if upper and of_rows:
                means |= upper.text_means(rows, of_rows)
        return with_text(states, of_rows, means), scores

    def _states(self, rows: Sequence[Row], prefix: Prefix | None) -> Tensor:
        """``(B, T, d)``."""
        self.on_pass()
        with exclusive(self.backbone):
            if self._upper is None or prefix is not None:
                return states_of(self.backbone, rows, prefix)
            return self._upper.hidden_states(rows)

    def _tree_scores(self, read: Tensor) -> Tensor:
        """``(B, C)`` scores from the states ``(B, N, d)`` at the nodes of the tree."""
        parts = torch.split(read, max(1, _MOST_READ // len(self._tree.nodes)))
        scores = torch.cat([self._word_scores(part) for part in parts])
        return scores / self._word_lengths if self.task.normalise_length else scores

    def _word_scores(self, read: Tensor) -> Tensor:
        logs = self.backbone.logits(read).log_softmax(dim=-1)  # (B, N, V)
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


def _last(states: Tensor, prompts: Sequence[Tokens], rows: int = 1) -> Tensor:
    """``(B, d)`` of ``(B·rows, T, d)``: the state that predicts the first token of the label word, in a prompt's first row."""
    return tokens_at(states, np.arange(len(prompts)) * rows, np.array([len(prompt) - 1 for prompt in prompts]))


def _row_sums(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """``(B,)``: sums of so many values each, in their order; a GPU's indexed sum would add in any."""
    if max(lengths) == 1:
        return values
    places = np.full((max(lengths), len(lengths)), len(values), dtype=np.int64)  # behind the last value is a zero
    ends = np.cumsum(lengths)
    for row, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        places[:length, row] = np.arange(end - length, end)
    steps = functional.pad(values, (0, 1)).index_select(0, to_device(places.ravel(), values.device)).view(places.shape)
    return sum(steps.unbind(), torch.zeros_like(steps[0]))


def _behind(span: Span | None, prefix: Prefix | None) -> Span | None:
    """The span, counted from the end of the prefix."""
    if span is None or prefix is None:
        return span
    return replace(span, first=span.first - prefix.length, end=span.end - prefix.length)


class Scorers:
    """The present task's scorer for all clients of one process: label words are encoded once, and kept states are shared."""

    def __init__(self, backbone: Backbone) -> None:
        """Prepare nothing yet."""
        self._backbone = backbone
        self._last: tuple[Task, int, Scorer] | None = None

    def of(self, task: Task, first_layer: int, on_pass: Callable[[], None]) -> Scorer:
        """A scorer as :class:`Scorer` makes it; it shares what the one before has, if that has the same task and layer.

        Raises:
            TaskError: as :class:`Scorer`.
        """
        if self._last is None or self._last[:2] != (task, first_layer):
            self._last = task, first_layer, Scorer(self._backbone, task, first_layer=first_layer)
        return self._last[2].shared(on_pass)
