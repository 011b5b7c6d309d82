"""What an answer of text needs of a model's states: where its tokens and the end are predicted, and the loss of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ifedicl.backbone.layout import Row, read_at, widest
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.losses import Fed, Padded, row_sums, sum_places
from ifedicl.backbone.prompts import Tokens
from ifedicl.core.transfer import to_device
from ifedicl.errors import TaskError
from ifedicl.kinds.passages import Wanted

_MOST_READ = 512  # states whose logits over the whole vocabulary are computed at once: 256 MiB for 128,000 tokens


class AnswerEnds:
    """Where an answer ends: at an end token of the model, or at a line break."""

    def __init__(self, backbone: Backbone) -> None:
        """Find the model's end tokens.

        Raises:
            TaskError: the model has none.
        """
        self._tokenizer = backbone.tokenizer
        stated = getattr(getattr(backbone.model, "generation_config", None), "eos_token_id", None)
        several = stated if isinstance(stated, list) else [stated]
        ends = [token for token in (backbone.tokenizer.eos_token_id, *several) if token is not None]
        if not ends:
            raise TaskError(
                f'task.kind: "extract" asks {backbone.source} to end its answers, and it has no end token (eos_token_id in '
                "its generation_config.json). Set one there, or take another model"
            )
        self.token = int(ends[0])
        """The one that training asks for."""
        self.tokens = tuple(dict.fromkeys(map(int, ends)))
        """All of them."""
        self._lines: dict[int, tuple[str, bool]] = {}

    def ends_at(self, token: int) -> bool:
        """Whether nothing of the answer comes behind this token."""
        return token in self.tokens or self._line(token)[1]

    def adds_nothing(self, token: int) -> bool:
        """Whether the answer ends before this token."""
        line, breaks = self._line(token)
        return token in self.tokens or (breaks and not line.strip())

    def text(self, tokens: Sequence[int]) -> str:
        """The answer in written tokens: what stands before the first end, on one line."""
        own = list(tokens)
        cut = next((place for place, token in enumerate(own) if token in self.tokens), len(own))
        whole = self._tokenizer.decode(own[:cut], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(whole).strip().partition("\n")[0].strip()

    def length(self, tokens: Sequence[int]) -> int:
        """How many of the written tokens are the model's own, the end included; behind them is padding."""
        return next((place + 1 for place, token in enumerate(tokens) if self.ends_at(int(token))), len(tokens))

    def _line(self, token: int) -> tuple[str, bool]:
        """What the token adds before a line break, and whether it has one."""
        if token not in self._lines:
            text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
            self._lines[token] = text.partition("\n")[0], "\n" in text
        return self._lines[token]


class AnswerTokens:
    """The tokens of answers, on one model. Of free text all answers are possible, so both losses are the same."""

    def __init__(self, backbone: Backbone, end: int) -> None:
        """Take the model and the token that follows an answer."""
        self._backbone = backbone
        self._end = end

    def label_fed(self, prompts: Sequence[Tokens], labels: Sequence[Wanted], padded: Padded) -> Fed:
        """As :meth:`word_fed`."""
        return self.word_fed(prompts, labels, padded)

    def label_losses(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`word_losses`."""
        return self.word_losses(states, fed)

    def word_fed(self, prompts: Sequence[Tokens], labels: Sequence[Wanted], padded: Padded) -> Fed:
        """For :meth:`word_losses`: the state before each token of the answer, and before the end, predicts it."""
        rows = rows_of(prompts, labels)
        width, lengths = padded(widest(rows)), [len(wanted.tokens) + 1 for wanted in labels]
        starts = (number * width + len(prompt) - 1 for number, prompt in enumerate(prompts))
        fed = {
            "places": np.concatenate([np.arange(start, start + count) for start, count in zip(starts, lengths, strict=True)]),
            "targets": np.array([token for wanted in labels for token in (*wanted.tokens, self._end)]),
            "sums": sum_places(lengths),
            "lengths": np.array(lengths, dtype=np.float32),
        }
        return Fed(rows, width, {name: to_device(array, self._backbone.device) for name, array in fed.items()})

    def word_losses(self, states: Tensor, fed: Mapping[str, Tensor]) -> Tensor:
        """``(B,)``: the mean of ``-log P(token)`` over an answer's tokens and the end, each behind those before it."""
        logits = self._backbone.logits(read_at(states, fed["places"]))  # (sum of lengths, V)
        losses = functional.cross_entropy(logits, fed["targets"], reduction="none")
        return row_sums(losses, fed["sums"]) / fed["lengths"]

    def read(self, states: Tensor, fed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``(M,)`` each: ``log P`` of all tokens and ends of the batch in turn, and the most probable token in its place."""
        logs, best = zip(*self._parts(states, fed), strict=True)
        return torch.cat(logs), torch.cat(best)

    def _parts(self, states: Tensor, fed: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for places, targets in zip(*(torch.split(fed[name], _MOST_READ) for name in ("places", "targets")), strict=True):
            logits = self._backbone.logits(read_at(states, places))
            yield -functional.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1)


def rows_of(prompts: Sequence[Tokens], labels: Sequence[Wanted]) -> list[Row]:
    """Prompts with their answers behind them; the end is predicted, and not run."""
    return [Row(prompt + wanted.tokens) for prompt, wanted in zip(prompts, labels, strict=True)]
