"""Where the tokens of all label words are read, as tables on the device: one operation takes them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ifedicl.backbone.encoding import LabelTree
from ifedicl.backbone.prompts import Tokens
from ifedicl.core.transfer import to_device


@dataclass(frozen=True)
class WordSteps:
    """Where the tokens of the label words are read: ``S`` in all, ``M`` of the longest of ``C`` words.

    Attributes:
        nodes: ``(S,)`` int64: the node of the tree behind which a token stands.
        tokens: ``(S,)`` int64: the token.
        places: ``(M, C)`` int64: which of them is a word's first, second, ...; ``S`` behind its last.
        ended: ``(E,)`` int64: the words that begin others.
        ends: these words, each with the node at which it may end.
    """

    nodes: Tensor
    tokens: Tensor
    places: Tensor
    ended: Tensor
    ends: Mapping[Tokens, int]

    @classmethod
    def of(cls, tree: LabelTree, device: torch.device) -> Self:
        """Of all words of a tree."""
        numbers = {node: number for number, node in enumerate(tree.nodes)}
        steps = [(numbers[word[:step]], word[step]) for word in tree.words for step in range(len(word))]
        places = np.full((max(map(len, tree.words)), len(tree.words)), len(steps), dtype=np.int64)
        first = 0
        for label, word in enumerate(tree.words):
            places[: len(word), label] = np.arange(first, first + len(word))
            first += len(word)
        ends = {word: numbers[word] for word in tree.continuations()}
        ended = np.array([tree.words.index(word) for word in ends], dtype=np.int64)
        nodes, tokens = (np.array(each, dtype=np.int64) for each in zip(*steps, strict=True))
        on_device = [to_device(each, device) for each in (nodes, tokens, places, ended)]
        return cls(on_device[0], on_device[1], on_device[2], on_device[3], ends)
