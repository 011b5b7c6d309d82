"""Scores examples with their own options: batches by length, right-padded; the LM head runs where an option is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.layout import read_at
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.option_layout import OptionLayout, kinds_of
from ifedicl.backbone.option_words import OptionWords
from ifedicl.backbone.passes import PassBudget, length_batches
from ifedicl.backbone.pooling import Span, text_means, with_text
from ifedicl.backbone.prompts import EncodedExamples, PromptEncoder, Tokens
from ifedicl.backbone.readings import Reading
from ifedicl.core.readout import Readout, hidden_count
from ifedicl.core.transfer import to_device, to_host
from ifedicl.errors import DataError, TaskError
from ifedicl.kinds.choices import Choice, Options
from ifedicl.kinds.choose import ChooseTask
from ifedicl.kinds.examples import AnyExample


class OptionScorer(BaseScorer):
    """Scores the options of each example behind one shared prompt.

    A readout's row is one option: its last state and mean states, less the mean of the example's options. What a linear
    function says of the prompt alone is the same for all options, so it is left out.
    """

    task: ChooseTask
    words: OptionWords

    def __init__(
        self, backbone: Backbone, task: ChooseTask, *, first_layer: int = 0, on_pass: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare the prompt; arguments as :class:`BaseScorer`.

        Raises:
            TaskError: as :class:`PromptEncoder`.
        """
        super().__init__(backbone, first_layer=first_layer, on_pass=on_pass)
        self.task = task
        self.encoder = PromptEncoder(backbone, task)
        self.words = OptionWords(backbone, task)

    def encoded(self, examples: Sequence[AnyExample]) -> EncodedExamples:
        self.task.check_classes(examples)
        own = [example for example in examples if isinstance(example, Choice)]
        known: dict[str, Tokens] = {}  # of these examples alone: a server's scorer lives long, and options are texts of others
        words = [
            tuple(self._ending(word, number, known) for word in self.task.words(one)) for number, one in enumerate(own, start=1)
        ]
        shown = [self.task.shown(one) for one in own]
        prompts = self.encoder.prompts(
            [one.text for one in own],
            behind=[max(map(len, tokens)) for tokens in words],
            tails=[text.removeprefix(one.text) for text, one in zip(shown, own, strict=True)],
        )
        labels = (Options(tokens, one.which, self.task.class_of(one)) for tokens, one in zip(words, own, strict=True))
        return EncodedExamples(prompts, tuple(labels))

    def _ending(self, word: str, number: int, known: dict[str, Tokens]) -> Tokens:
        """The tokens of an option behind the prompt; the same whatever the text. ``known`` gets those of a new one."""
        if word not in known:
            try:
                tokens = self.encoder.ending(word)
            except TaskError:  # its message quotes the option
                raise DataError(
                    f"an option of text number {number} holds the characters of a control token, and the tokenizer cannot read "
                    "them as plain text. Remove them, or leave the text out"
                ) from None
            if not tokens:
                raise DataError(
                    f"an option of text number {number} has no tokens of its own behind the template. End it without "
                    "a space (for instance with ':'), and set task.separator to ' '; or leave the text out"
                )
            known[word] = tokens
        return known[word]

    def demonstrations(self, prompts: Sequence[Tokens], labels: Sequence[Options], position: str) -> list[Tokens]:
        if position == "prompt":
            return list(prompts)
        return [prompt + own.words[own.which] for prompt, own in zip(prompts, labels, strict=True)]

    def classes_of(self, labels: Sequence[Options]) -> list[int]:
        return [own.group for own in labels]

    def row_classes(self, labels: Sequence[Options]) -> list[int]:
        """1 for the right option of an example, 0 for the others."""
        return [int(place == own.which) for own in labels for place in range(len(own.words))]

    def rows_of(self, label: Options) -> int:
        return len(label.words)

    def training_batches(self, prompts: Sequence[Tokens], labels: Sequence[Options]) -> list[list[int]]:
        bound = self.backbone.trained_tokens
        return self._batches(self.words.layouts(prompts, labels), self.budget if bound is None else self.budget.within(bound))

    def _batches(self, layouts: Sequence[OptionLayout], budget: PassBudget) -> list[list[int]]:
        return [
            [own[position] for position in batch]
            for own in kinds_of(layouts)
            for batch in length_batches([layouts[position].size for position in own], budget)
        ]

    def widths(self, examples: EncodedExamples) -> list[int]:
        return [layout.size for layout in self.words.layouts(examples.prompts.tokens, examples.labels)]

    def reading(
        self, examples: EncodedExamples, pooled_layers: tuple[int, ...] = (), *, alone: bool = False, words: bool = True
    ) -> Reading:
        del words  # options are run for their states in any case
        return self._read(examples, pooled_layers, alone=alone)

    def scores(
        self,
        examples: EncodedExamples,
        *,
        readout: Readout | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        layers = None if readout is None else readout.pooled_layers
        return self._read(examples, layers, on_progress=on_progress).log_probabilities(readout)

    def _read(
        self,
        examples: EncodedExamples,
        pooled_layers: tuple[int, ...] | None,
        *,
        alone: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> Reading:
        """A row for each option of each example in turn; None for the layers: without states."""
        counts = [len(own.words) for own in examples.labels]
        ends = np.cumsum([0, *counts])
        hidden = 0 if pooled_layers is None else hidden_count(self.backbone.width, pooled_layers)
        rows, states, logs = list[int](), list[Tensor](), list[Tensor]()
        for batch, of_batch, batch_logs in self._passes(examples, pooled_layers, alone=alone):
            rows += [row for position in batch for row in range(ends[position], ends[position + 1])]
            states.append(of_batch)
            logs.append(batch_logs)
            if on_progress is not None:
                on_progress(len(batch))
        read = Reading(np.empty((len(rows), hidden), dtype=np.float32), np.empty((len(rows), 2), dtype=np.float32))
        if rows:
            read.states[rows], own_logs = to_host(torch.cat(states), torch.cat(logs))
            read.logs[rows] = np.stack([-own_logs, own_logs], axis=1) / 2
        return read

    @torch.inference_mode()
    def _passes(
        self, examples: EncodedExamples, pooled_layers: tuple[int, ...] | None, *, alone: bool
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """For each pass its examples, and of their options ``(M, h)`` states and ``(M,)`` log-probabilities, both centred.

        An example whose options are too many tokens for one pass has several.
        """
        tokens, labels = examples.prompts.tokens, examples.labels
        layouts = self.words.layouts(tokens, labels, whole=pooled_layers is not None)
        batches = [[place] for place in range(len(layouts))] if alone else self._batches(layouts, self.budget)
        for batch in batches:
            own = [labels[position] for position in batch]
            if len(batch) == 1:  # 26 options as long as the window are 26 rows of it: more than one pass may hold
                parts = layouts[batch[0]].parts(self.budget.remembered)
                runs = [self._run([part], [replace(own[0], words=own[0].words[held])], pooled_layers) for held, part in parts]
            else:
                runs = [self._run([layouts[position] for position in batch], own, pooled_layers)]
            states, logs = (torch.cat(each) for each in zip(*runs, strict=True))
            counts = [len(one.words) for one in own]
            yield batch, _centred(states, counts), _centred(logs, counts)

    def _run(
        self, layouts: Sequence[OptionLayout], labels: Sequence[Options], pooled_layers: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """One pass: of all options ``(M, h)`` states and ``(M,)`` log-probabilities."""
        rows = [row for layout in layouts for row in layout.rows]
        places, spans = _spans(layouts, pooled_layers or ())
        first = self.upper.first if self.upper else 0
        with text_means(self.backbone, spans, first_layer=first, rows=places) as means:
            run = self.states(rows, None)
            fed = self.words.places(layouts, labels, run.shape[1])
            scores = self.words.scores(run, {name: to_device(array, run.device) for name, array in fed.items()})
            if self.upper and pooled_layers:
                means |= self.upper.text_means([rows[place] for place in places], spans)
        logs = torch.cat([row[: len(own.words)] for row, own in zip(scores, labels, strict=True)])
        if pooled_layers is None:
            return run.new_zeros((len(logs), 0), dtype=torch.float32), logs
        last = read_at(run, to_device(_last_places(layouts, run.shape[1]), run.device))
        return with_text(last, spans, means), logs


def _spans(layouts: Sequence[OptionLayout], layers: tuple[int, ...]) -> tuple[list[int], list[Span | None]]:
    """For each option the row of the pass that holds it, and its tokens at these layers."""
    places, spans, first = list[int](), list[Span | None](), 0
    for layout in layouts:
        for row, begin, end in layout.spans:
            places.append(first + row)
            spans.append(Span(layers, begin, end) if layers else None)
        first += len(layout.rows)
    return places, spans


def _last_places(layouts: Sequence[OptionLayout], width: int) -> npt.NDArray[np.int64]:
    """``(M,)``: the last token of each option, in rows of ``width`` tokens."""
    places, first = list[int](), 0
    for layout in layouts:
        places += [(first + row) * width + end - 1 for row, _, end in layout.spans]
        first += len(layout.rows)
    return np.array(places, dtype=np.int64)


def _centred(states: Tensor, counts: Sequence[int]) -> Tensor:
    """``(M, ...)``: less the mean of each example's options."""
    return torch.cat([part - part.mean(dim=0, keepdim=True) for part in torch.split(states, list(counts))])
