"""The data of the attacks: one vector for each private and each public text, and the words that attackers look for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.vectors import WRITES, Array32
from ifedicl.extract import example_writes
from ifedicl.kinds.examples import AnyExample
from ifedicl.settings import Method

_LETTERS = 4
"""Minimum letters of a token that counts as a word."""
_SPACES = ("\u0120", "\u2581")
"""The space before a word in byte-level and in sentence-piece vocabularies."""
_RARE = 0.01
"""Maximum share of public texts that contain a rare word."""


@dataclass(frozen=True)
class Victims:
    """Texts, each with its vector, tokens and label.

    Attributes:
        vectors: ``(N, L, 2, d)`` float32: context vector of each single text, for the injected layers.
        tokens: the set of tokens of each text.
        labels: ``(N,)``: positions in the task.
        first_layer: the model's layer of the first vector.
    """

    vectors: Array32
    tokens: tuple[frozenset[int], ...]
    labels: npt.NDArray[np.int64]
    first_layer: int = 0

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        examples: Sequence[AnyExample],
        method: Method,
        on_progress: Callable[[int], None] = lambda _done: None,
    ) -> Victims:
        """Compute the vectors; one forward pass for each example."""
        encoded, backbone = scorer.encoded(examples), scorer.backbone
        prompts, labels = encoded.prompts, encoded.labels
        layers = method.injection.active_layers(backbone.layers)
        vectors = np.empty((len(examples), len(layers), len(WRITES), backbone.width), dtype=np.float32)
        for batch, writes in example_writes(scorer, prompts.tokens, labels, method):
            vectors[batch] = writes
            on_progress(len(batch))
        return cls(vectors, tuple(map(frozenset, prompts.tokens)), np.array(labels, dtype=np.int64), layers.start)

    def take(self, rows: npt.ArrayLike) -> Victims:
        """The texts at these positions."""
        rows = np.asarray(rows)
        return Victims(self.vectors[rows], tuple(self.tokens[int(row)] for row in rows), self.labels[rows], self.first_layer)

    def __len__(self) -> int:
        return len(self.labels)


def word_tokens(backbone: Backbone) -> npt.NDArray[np.bool_]:
    """``(V,)``: tokens that begin a word and have four letters or more."""
    size = backbone.model.get_input_embeddings().weight.shape[0]
    pieces = backbone.tokenizer.convert_ids_to_tokens(range(min(size, len(backbone.tokenizer))))
    words = np.zeros(size, dtype=np.bool_)
    words[: len(pieces)] = [
        piece[:1] in _SPACES and len(piece) > _LETTERS and piece[1:].isascii() and piece[1:].isalpha() for piece in pieces
    ]
    return words


def rare_words(words: npt.NDArray[np.bool_], public: Victims, template: frozenset[int]) -> npt.NDArray[np.bool_]:
    """``(V,)``: the ``words`` (of :func:`word_tokens`) that few public texts contain and the template does not."""
    counts = np.zeros(len(words))
    for tokens in public.tokens:
        counts[list(tokens)] += 1
    rare: npt.NDArray[np.bool_] = words & (counts <= _RARE * len(public))
    rare[list(template)] = False
    return rare
