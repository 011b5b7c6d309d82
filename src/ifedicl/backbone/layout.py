"""What is run as one row of a forward pass, and how the label words stand behind a prompt in it.

Label words of several tokens form a tree. Behind the prompt its nodes stand one after the other, each seeing the prompt and its
own ancestors only, at the position that it has in its own sequence: one row a prompt gives what one sequence for each path
gives. Where a model cannot branch (:func:`~ifedicl.backbone.tree_attention.branch_limit`) those sequences are run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.backbone.encoding import LabelTree, Tokens
from ifedicl.backbone.load import Backbone, Prefix
from ifedicl.backbone.pooling import Span
from ifedicl.backbone.tree_attention import Branches


@dataclass(frozen=True)
class Row:
    """Tokens one after the other, and perhaps branches at their end. Equal rows give equal states.

    Attributes:
        tokens: all of them.
        parents: for each of the last ``len(parents)`` tokens, the branches, which one it follows: its place among them, always
            an earlier one, or -1 for the last token before all branches.
    """

    tokens: Tokens
    parents: tuple[int, ...] = ()

    def behind(self, prompt: Tokens) -> Row:
        """The same with a prompt before it."""
        return Row(prompt + self.tokens, self.parents)


@dataclass(frozen=True)
class Layout:
    """How a tree of label words stands behind each prompt, and where its nodes are read.

    Attributes:
        tails: what stands behind the prompt, for each row that is run for it.
        reads: for each node the tail, and how many tokens behind the prompt's last one.
    """

    tails: tuple[Row, ...]
    reads: tuple[tuple[int, int], ...]

    @classmethod
    def by_paths(cls, tree: LabelTree) -> Layout:
        """A row for each path: right for every model."""
        on = [next(i for i, path in enumerate(tree.paths) if path[: len(node)] == node) for node in tree.nodes]
        return cls(tuple(map(Row, tree.paths)), tuple((path, len(node)) for path, node in zip(on, tree.nodes, strict=True)))

    @classmethod
    def branching(cls, tree: LabelTree) -> Layout:
        """One row that branches; a tree of a single path has nothing to branch."""
        if len(tree.paths) == 1:
            return cls.by_paths(tree)
        fed = [node for node in sorted(tree.nodes) if node]  # a node's parent comes before it
        places = {node: place for place, node in enumerate(fed)}
        tail = Row(tuple(node[-1] for node in fed), tuple(places.get(node[:-1], -1) for node in fed))
        return cls((tail,), tuple((0, places[node] + 1 if node else 0) for node in tree.nodes))

    @property
    def branches(self) -> bool:
        """Whether its rows branch. A pass holds rows of one kind."""
        return any(tail.parents for tail in self.tails)

    def width(self, prompt: Tokens) -> int:
        """Tokens of the longest row that is run for a prompt."""
        return len(prompt) + max(len(tail.tokens) for tail in self.tails)

    def rows(self, prompts: Sequence[Tokens]) -> list[Row]:
        """What is run for ``B`` prompts: ``B·R`` rows, those of one prompt together."""
        return [tail.behind(prompt) for prompt in prompts for tail in self.tails]

    def spread(self, spans: Sequence[Span | None]) -> list[Span | None]:
        """From one for each prompt to one for each of its ``R`` rows: the first one's is enough."""
        return [None if number else span for span in spans for number in range(len(self.tails))]

    def read(self, states: Tensor, prompts: Sequence[Tokens]) -> Tensor:
        """``(B, N, d)`` of ``(B·R, T, d)``: the states that predict the tokens behind each node."""
        rows = [[number * len(self.tails) + tail for tail, _ in self.reads] for number in range(len(prompts))]
        columns = [[len(prompt) - 1 + behind for _, behind in self.reads] for prompt in prompts]
        return states[rows, columns]


def right_padded(sequences: Sequence[Tokens], device: torch.device) -> Tensor:
    """``(B, T)`` int64. The padding is token 0: nothing reads it."""
    width = max(map(len, sequences))
    padded = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return torch.from_numpy(padded).to(device)


def branches_of(rows: Sequence[Row], device: torch.device) -> Branches | None:
    """Which tokens follow which in ``B`` right-padded rows, which all branch; None where none does.

    Rows of both kinds are not mixed: those that do not branch may be longer than a sliding window, which a mask would hide.
    """
    if not any(row.parents for row in rows):
        return None
    assert all(row.parents for row in rows), "rows that branch and rows that do not make passes of their own"
    width = max(len(row.tokens) for row in rows)
    grown = {parents: _grown(parents) for parents in {row.parents for row in rows}}
    positions = np.zeros((len(rows), width), dtype=np.int64)  # of padding 0: a position that every model has
    seen = np.tril(np.ones((len(rows), width, width), dtype=np.bool_))
    for number, row in enumerate(rows):
        depths, lines = grown[row.parents]
        begin, end = len(row.tokens) - len(row.parents), len(row.tokens)
        positions[number, :begin] = np.arange(begin)
        positions[number, begin:end] = begin + depths
        seen[number, begin:end, begin:end] = lines
    return Branches(torch.from_numpy(positions).to(device), torch.from_numpy(seen).to(device))


def _grown(parents: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """``(n,)`` how many branches stand before each in its own sequence, and ``(n, n)`` which these are, itself included."""
    lines = np.eye(len(parents), dtype=np.bool_)
    for place, parent in enumerate(parents):
        if parent >= 0:
            lines[place] |= lines[parent]
    return lines.sum(axis=1) - 1, lines


def states_of(backbone: Backbone, rows: Sequence[Row], prefix: Prefix | None = None) -> Tensor:
    """``(B, T, d)``: last hidden states of ``B`` rows of one kind, as :meth:`Backbone.hidden_states`."""
    padded = right_padded([row.tokens for row in rows], backbone.device)
    return backbone.hidden_states(padded, prefix, branches_of(rows, backbone.device))
