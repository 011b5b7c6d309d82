"""The rows of a forward pass for examples with their own options: how the options follow a prompt.

Options follow the prompt one after another in one row. Each attends to the prompt and itself only, at the position that it has
behind the prompt, so the prompt is run once. Models that cannot branch run one row for each option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ifedicl.backbone.layout import Row, widest
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import Tokens
from ifedicl.backbone.tree_attention import WIDEST
from ifedicl.kinds.choices import Options


@dataclass(frozen=True)
class OptionLayout:
    """The rows of one example, and where its options are read.

    Attributes:
        rows: one that branches, or one for each option.
        reads: for each option, for each of its tokens: the row, and the place of the token before it.
        spans: for each option: its row, its first token and one past its last. The last one stands there only if options are
            run whole.
    """

    rows: tuple[Row, ...]
    reads: tuple[tuple[tuple[int, int], ...], ...]
    spans: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, backbone: Backbone, prompt: Tokens, options: Options, *, whole: bool) -> Self:
        """The rows of an example; in ``whole`` ones the options' last tokens are run, too, which predict nothing."""
        longest, total = max(map(len, options.words)), sum(map(len, options.words))
        fits = len(prompt) + longest <= backbone.branch_limit and len(prompt) + total <= WIDEST and len(options.words) > 1
        return (cls._branching if fits else cls._by_options)(prompt, options, whole=whole)

    @classmethod
    def _branching(cls, prompt: Tokens, options: Options, *, whole: bool) -> Self:
        tokens, parents, reads, spans = (
            list[int](),
            list[int](),
            list[tuple[tuple[int, int], ...]](),
            list[tuple[int, int, int]](),
        )
        for word in options.words:
            first, last = len(tokens), len(prompt) - 1
            run = word if whole else word[:-1]
            tokens += run
            parents += [-1, *range(first, first + len(run) - 1)][: len(run)]
            reads.append(((0, last), *((0, last + first + step) for step in range(1, len(word)))))
            spans.append((0, len(prompt) + first, len(prompt) + first + len(word)))
        return cls((Row(prompt + tuple(tokens), tuple(parents)),), tuple(reads), tuple(spans))

    @classmethod
    def _by_options(cls, prompt: Tokens, options: Options, *, whole: bool) -> Self:
        last = len(prompt) - 1
        rows = tuple(Row(prompt + (word if whole else word[:-1])) for word in options.words)
        reads = tuple(tuple((row, last + step) for step in range(len(word))) for row, word in enumerate(options.words))
        spans = tuple((row, len(prompt), len(prompt) + len(word)) for row, word in enumerate(options.words))
        return cls(rows, reads, spans)

    @property
    def kind(self) -> tuple[int, bool]:
        """Examples of one kind may share a pass: the number of their rows, and whether these branch."""
        return len(self.rows), bool(self.rows[0].parents)

    @property
    def size(self) -> int:
        """Tokens of a pass of this example alone."""
        return len(self.rows) * widest(self.rows)

    def parts(self, tokens: int) -> list[tuple[slice, Self]]:
        """In parts of at most so many tokens or of one row, each with the options that it holds; a branching row is whole."""
        most = max(1, tokens // widest(self.rows))
        if len(self.rows) <= most:
            return [(slice(None), self)]
        return [(slice(first, first + most), self._part(first, first + most)) for first in range(0, len(self.rows), most)]

    def _part(self, first: int, end: int) -> Self:
        reads = tuple(tuple((row - first, column) for row, column in read) for read in self.reads[first:end])
        spans = tuple((row - first, begin, past) for row, begin, past in self.spans[first:end])
        return type(self)(self.rows[first:end], reads, spans)


def kinds_of(layouts: Sequence[OptionLayout]) -> list[list[int]]:
    """Positions of examples, those of one kind together."""
    found: dict[tuple[int, bool], list[int]] = {}
    for position, layout in enumerate(layouts):
        found.setdefault(layout.kind, []).append(position)
    return list(found.values())
