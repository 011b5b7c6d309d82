"""What the attacks work on: single vectors of the owner's text and of public text, and the words that are to come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.vectors import WRITES, Array32
from ifedicl.data import Example
from ifedicl.extract import example_writes
from ifedicl.settings import Method

_LETTERS = 4
"""Fewest in a token that counts as a word."""
_SPACES = ("\u0120", "\u2581")
"""How byte-level and sentence-piece vocabularies write the space before a word."""
_RARE = 0.01
"""Share of public texts in which a rare word occurs at most."""


@dataclass(frozen=True)
class Victims:
    """Texts as an attacker would love to have them.

    Attributes:
        vectors: ``(N, L, 2, d)`` float32: what each text alone would send as its context vector, of the injected layers.
        tokens: of each text, the set of its tokens.
        labels: ``(N,)``: positions in the task.
        first_layer: the model's layer that the vectors begin at.
    """

    vectors: Array32
    tokens: tuple[frozenset[int], ...]
    labels: npt.NDArray[np.int64]
    first_layer: int = 0

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        examples: Sequence[Example],
        method: Method,
        on_progress: Callable[[int], None] = lambda _done: None,
    ) -> Victims:
        """One forward pass each."""
        encoded, backbone = scorer.encoded(examples), scorer.backbone
        prompts, labels = encoded.prompts, encoded.labels
        layers = method.injection.active_layers(backbone.layers)
        vectors = np.empty((len(examples), len(layers), len(WRITES), backbone.width), dtype=np.float32)
        for batch, writes in example_writes(scorer, prompts.tokens, labels, method):
            vectors[batch] = writes
            on_progress(len(batch))
        return cls(vectors, tuple(map(frozenset, prompts.tokens)), np.array(labels, dtype=np.int64), layers.start)

    def take(self, rows: npt.ArrayLike) -> Victims:
        """Some of them, by position."""
        places = np.asarray(rows)
        return Victims(
            self.vectors[places], tuple(self.tokens[int(row)] for row in places), self.labels[places], self.first_layer
        )

    def __len__(self) -> int:
        return len(self.labels)


def word_tokens(backbone: Backbone) -> npt.NDArray[np.bool_]:
    """``(V,)``: tokens that begin a word, of four letters or more."""
    size = backbone.model.get_input_embeddings().weight.shape[0]
    pieces = backbone.tokenizer.convert_ids_to_tokens(range(min(size, len(backbone.tokenizer))))
    words = np.zeros(size, dtype=np.bool_)
    words[: len(pieces)] = [
        piece[:1] in _SPACES and len(piece) > _LETTERS and piece[1:].isascii() and piece[1:].isalpha() for piece in pieces
    ]
    return words


def rare_words(words: npt.NDArray[np.bool_], public: Victims, template: frozenset[int]) -> npt.NDArray[np.bool_]:
    """``(V,)``: words that few public texts hold, and the prompt around them never does.

    Args:
        words: of :func:`word_tokens`.
        public: texts to count in.
        template: tokens that every prompt holds.
    """
    counts = np.zeros(len(words))
    for tokens in public.tokens:
        counts[list(tokens)] += 1
    rare: npt.NDArray[np.bool_] = words & (counts <= _RARE * len(public))
    rare[list(template)] = False
    return rare
