"""Reads answers of text in one pass for their loss, and writes them: batches by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.backbone.answer_tokens import AnswerEnds, AnswerTokens, rows_of
from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.generation import write
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.passes import length_batches
from ifedicl.backbone.prompts import EncodedExamples, PromptEncoder, Tokens
from ifedicl.backbone.readings import Reading
from ifedicl.core.readout import Readout
from ifedicl.core.transfer import to_host
from ifedicl.errors import DataError, TaskError
from ifedicl.kinds.examples import AnyExample
from ifedicl.kinds.extraction import ExtractTask
from ifedicl.kinds.passages import EXACT, LOG, SURE, TEXT, Passage, Wanted


class AnswerScorer(BaseScorer):
    """Reads and writes the answers of an extraction.

    A reading has no states, and two columns: those of :mod:`ifedicl.kinds.passages` that need no writing. Greedy writing gives
    a token exactly if it is the most probable behind those before it, so one pass over the true answer says whether it would
    be written: neither rounds nor the gate write anything.
    """

    task: ExtractTask
    words: AnswerTokens

    def __init__(
        self, backbone: Backbone, task: ExtractTask, *, first_layer: int = 0, on_pass: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare the prompt; arguments as :class:`BaseScorer`.

        Raises:
            TaskError: as :class:`PromptEncoder`; the model has no end token, or prompt and answer do not fit its window.
        """
        super().__init__(backbone, first_layer=first_layer, on_pass=on_pass)
        self.task = task
        self.ends = AnswerEnds(backbone)
        self.encoder = PromptEncoder(backbone, task)
        self.encoder.reserve(self._most)
        self.words = AnswerTokens(backbone, self.ends.token)

    @property
    def _most(self) -> int:
        """Tokens of the longest answer, with its end."""
        return self.task.most_answer_tokens + 1

    def encoded(self, examples: Sequence[AnyExample]) -> EncodedExamples:
        self.task.check_classes(examples)
        own = [example for example in examples if isinstance(example, Passage)]
        wanted = tuple(Wanted(one.answer, self._answer(one.answer, number)) for number, one in enumerate(own, start=1))
        return EncodedExamples(self.encoder.prompts([one.text for one in own]), wanted)

    def _answer(self, answer: str, number: int) -> Tokens:
        """The tokens of an answer behind the prompt, the same whatever the text; none if nobody knows it."""
        if not answer:
            return ()
        try:
            tokens = self.encoder.ending(answer)
        except TaskError:  # it names the words of a task, and an answer is an owner's own text
            raise DataError(
                f"the answer of text number {number} holds the characters of a control token of {self.backbone.source}. "
                "Remove them from the answer"
            ) from None
        if not tokens:
            raise DataError(
                f"the answer of text number {number} has no tokens of its own behind the template. End the template without a "
                "space (for instance with ':'), and set task.separator to ' '; or leave the text out"
            )
        if len(tokens) > self.task.most_answer_tokens:
            raise DataError(
                f"the answer of text number {number} has {len(tokens)} tokens; allowed: task.most_answer_tokens, "
                f"{self.task.most_answer_tokens}. Set it higher, or leave the text out"
            )
        return tokens

    def demonstrations(self, prompts: Sequence[Tokens], labels: Sequence[Wanted], position: str) -> list[Tokens]:
        if position == "prompt":
            return list(prompts)
        return [row.tokens for row in rows_of(prompts, labels)]

    def classes_of(self, labels: Sequence[Wanted]) -> list[int]:
        return [0] * len(labels)

    def training_batches(self, prompts: Sequence[Tokens], labels: Sequence[Wanted]) -> list[list[int]]:
        bound = self.backbone.trained_tokens
        widths = [self.backbone.padded(len(row.tokens)) for row in rows_of(prompts, labels)]
        return length_batches(widths, self.budget if bound is None else self.budget.within(bound))

    def widths(self, examples: EncodedExamples) -> list[int]:
        return [len(row.tokens) for row in rows_of(examples.prompts.tokens, examples.labels)]

    def reading(
        self, examples: EncodedExamples, pooled_layers: tuple[int, ...] = (), *, alone: bool = False, words: bool = True
    ) -> Reading:
        del pooled_layers, words  # there is no readout
        prompts, labels = examples.prompts.tokens, examples.labels
        logs = np.full((len(labels), 2), np.nan, dtype=np.float32)
        batches = [[place] for place in range(len(labels))] if alone else length_batches(self.widths(examples), self.budget)
        for batch, batch_logs, best in self._passes(prompts, labels, batches):
            first = 0
            for place in batch:
                tokens = labels[place].tokens
                end = first + len(tokens)
                is_exact = tuple(best[first:end].tolist()) == tokens and self.ends.adds_nothing(int(best[end]))
                logs[place, [LOG, EXACT]] = batch_logs[first : end + 1].astype(np.float64).mean(), is_exact
                first = end + 1
        return Reading(np.empty((len(labels), 0), dtype=np.float32), logs)

    @torch.inference_mode()
    def _passes(
        self, prompts: Sequence[Tokens], labels: Sequence[Wanted], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """For each pass its examples, and for all tokens of their answers in turn ``log P`` and the most probable token."""
        for batch in batches:
            fed = self.words.word_fed([prompts[place] for place in batch], [labels[place] for place in batch], _as_wide)
            read: tuple[Tensor, Tensor] = self.words.read(self.states(fed.rows, None), fed.tensors)
            logs, best = to_host(*read)
            yield batch, logs, best

    def scores(
        self,
        examples: EncodedExamples,
        *,
        readout: Readout | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[Any]:
        """``(N, 4)`` objects in the columns of :mod:`ifedicl.kinds.passages`; the first two are of examples with an answer."""
        del readout  # there is none
        scores = np.empty((len(examples.labels), 4), dtype=np.object_)
        known = [place for place, wanted in enumerate(examples.labels) if wanted.tokens]
        scores[:, LOG], scores[:, EXACT] = np.nan, 0.0
        if known:
            scores[np.ix_(known, [LOG, EXACT])] = self.reading(_part(examples, known)).logs
        # Each step reads all weights for one token a row, so rows wait for each other as long as memory holds them.
        room = replace(self.budget, tokens=self.budget.remembered)
        for batch in length_batches([len(tokens) + self._most for tokens in examples.prompts.tokens], room):
            prompts = [examples.prompts.tokens[place] for place in batch]
            for place, written in zip(batch, write(self.backbone, prompts, self.ends, self._most, self.on_pass), strict=True):
                scores[place, SURE], scores[place, TEXT] = written.log, written.text
            if on_progress is not None:
                on_progress(len(batch))
        return scores


def _as_wide(width: int) -> int:
    return width


def _part(examples: EncodedExamples, places: Sequence[int]) -> EncodedExamples:
    prompts, labels = examples.prompts, examples.labels
    chosen = replace(prompts, tokens=tuple(prompts.tokens[place] for place in places))
    return EncodedExamples(chosen, tuple(labels[place] for place in places))
