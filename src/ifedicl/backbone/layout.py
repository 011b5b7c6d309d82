"""The rows of a forward pass: how the label words follow a prompt.

Label words of several tokens form a tree. Its nodes follow the prompt one after another. Each attends to the prompt and its
ancestors only, at the position that it has in its sequence: one row for each prompt gives what one row for each path gives.
Models that cannot branch (:func:`~ifedicl.backbone.tree_attention.branch_limit`) run one row for each path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.backbone.encoding import LabelTree
from ifedicl.backbone.load import Backbone, Prefix
from ifedicl.backbone.lock import exclusive
from ifedicl.backbone.pooling import Span
from ifedicl.backbone.prompts import Tokens
from ifedicl.backbone.tree_attention import Branches
from ifedicl.core.transfer import to_device


@dataclass(frozen=True)
class Row:
    """A sequence of tokens, possibly with branches at its end. Equal rows give equal states.

    Attributes:
        tokens: all tokens.
        parents: the last ``len(parents)`` tokens are branches. For each, the index of the earlier branch that it follows, or -1
            if it follows the last token before the branches.
    """

    tokens: Tokens
    parents: tuple[int, ...] = ()

    def behind(self, prompt: Tokens) -> Row:
        """The row with a prompt before it."""
        return Row(prompt + self.tokens, self.parents)


@dataclass(frozen=True)
class Layout:
    """How a tree of label words follows each prompt, and where its nodes are read.

    Attributes:
        tails: what follows the prompt in each of its ``R`` rows.
        reads: for each node its tail, and the number of tokens behind the prompt's last token.
    """

    BARE: ClassVar[Layout]
    """The prompts alone: no label word is run."""

    tails: tuple[Row, ...]
    reads: tuple[tuple[int, int], ...]

    @classmethod
    def by_paths(cls, tree: LabelTree) -> Layout:
        """A row for each path: correct for every model."""
        reads = ((next(i for i, path in enumerate(tree.paths) if path[: len(n)] == n), len(n)) for n in tree.nodes)
        return cls(tuple(map(Row, tree.paths)), tuple(reads))

    @classmethod
    def branching(cls, tree: LabelTree) -> Layout:
        """One row that branches, unless the tree has a single path."""
        if len(tree.paths) == 1:
            return cls.by_paths(tree)
        fed = [node for node in sorted(tree.nodes) if node]  # a node's parent comes before it
        places = {node: place for place, node in enumerate(fed)}
        tail = Row(tuple(node[-1] for node in fed), tuple(places.get(node[:-1], -1) for node in fed))
        return cls((tail,), tuple((0, places[node] + 1 if node else 0) for node in tree.nodes))

    @property
    def branches(self) -> bool:
        """Whether its rows branch. The rows of one pass must agree in this."""
        return any(tail.parents for tail in self.tails)

    def width(self, prompt: Tokens) -> int:
        """The number of tokens of a prompt's longest row."""
        return len(prompt) + max(len(tail.tokens) for tail in self.tails)

    def rows(self, prompts: Sequence[Tokens]) -> list[Row]:
        """The ``B·R`` rows of ``B`` prompts, those of one prompt together."""
        return [tail.behind(prompt) for prompt in prompts for tail in self.tails]

    def spread(self, spans: Sequence[Span | None]) -> list[Span | None]:
        """The spans of ``B`` prompts as spans of their ``B·R`` rows: only the first row of each prompt is read."""
        return [None if number else span for span in spans for number in range(len(self.tails))]

    def places(self, prompts: Sequence[Tokens], width: int) -> npt.NDArray[np.int64]:
        """``(B, N)``: where in right-padded rows of ``width`` tokens the states are that predict what follows each node."""
        tails, behind = np.array(self.reads).T
        rows = np.arange(len(prompts))[:, None] * len(self.tails) + tails
        return places_of(rows, np.array([[len(prompt) - 1] for prompt in prompts]) + behind, width)


Layout.BARE = Layout((Row(()),), ((0, 0),))


def places_of(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """Places of tokens in rows of ``width`` tokens put together."""
    return rows * width + columns


def last_places(prompts: Sequence[Tokens], width: int, rows: int = 1) -> npt.NDArray[np.int64]:
    """``(B,)``: the token before the answer, in the first of each prompt's ``rows`` rows of ``width`` tokens."""
    return places_of(np.arange(len(prompts)) * rows, np.array([len(prompt) - 1 for prompt in prompts]), width)


def widest(rows: Sequence[Row]) -> int:
    """The number of tokens of the longest row."""
    return max(len(row.tokens) for row in rows)


def read_at(states: Tensor, places: Tensor) -> Tensor:
    """``(*I, d)`` of ``(B, T, d)``: the states at places of shape ``I``, in one operation."""
    return states.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, -1)


def right_padded(sequences: Sequence[Tokens], device: torch.device, width: int | None = None) -> Tensor:
    """``(B, T)`` int64, of the width of the longest or as given. The padding is token 0: nothing reads it."""
    width = width or max(map(len, sequences))
    padded = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return to_device(padded, device)


def branches_of(rows: Sequence[Row], device: torch.device, width: int | None = None) -> Branches | None:
    """Which tokens follow which in ``B`` right-padded rows that all branch; None if no row branches.

    Rows of both kinds are not mixed: rows that do not branch may be longer than a sliding window, which the mask ignores.
    """
    if not any(row.parents for row in rows):
        return None
    assert all(row.parents for row in rows), "rows that branch and rows that do not need separate passes"
    width = width or max(len(row.tokens) for row in rows)
    ancestors = {parents: _ancestors(parents) for parents in {row.parents for row in rows}}
    positions = np.zeros((len(rows), width), dtype=np.int64)  # of padding 0: a position that every model has
    seen = np.tril(np.ones((len(rows), width, width), dtype=np.bool_))
    for number, row in enumerate(rows):
        among = ancestors[row.parents]
        begin, end = len(row.tokens) - len(row.parents), len(row.tokens)
        positions[number, :begin] = np.arange(begin)
        positions[number, begin:end] = begin + among.sum(axis=1) - 1
        seen[number, begin:end, begin:end] = among
    return Branches(to_device(positions, device), to_device(seen, device))


def _ancestors(parents: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """``(n, n)``: for each branch, which branches are its ancestors; it is one of them itself."""
    ancestors = np.eye(len(parents), dtype=np.bool_)
    for branch, parent in enumerate(parents):
        if parent >= 0:
            ancestors[branch] |= ancestors[parent]
    return ancestors


def states_of(backbone: Backbone, rows: Sequence[Row], prefix: Prefix | None = None) -> Tensor:
    """``(B, T, d)``: last hidden states of ``B`` rows of one kind, as :meth:`Backbone.hidden_states`."""
    padded = right_padded([row.tokens for row in rows], backbone.device)
    with exclusive(backbone):
        return backbone.hidden_states(padded, prefix, branches_of(rows, backbone.device))
