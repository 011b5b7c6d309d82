"""Label words in tokens: the sequences of the label words, as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import PromptEncoder, Tokens
from ifedicl.errors import TaskError
from ifedicl.kinds.any_task import TEXT_FIELD
from ifedicl.kinds.with_labels import LabelledTask


@dataclass(frozen=True)
class LabelTree:
    """The tokens of the label words as a tree, so that shared tokens are run once.

    A *node* is a sequence of tokens after which at least one more token of a label word is read; the root is ``()``. A
    *path* is a node that no other node begins with: running prompt + path visits all nodes on the way. With label words of
    one token each there is one node and one path, both empty.
    """

    words: tuple[Tokens, ...]
    nodes: tuple[Tokens, ...]
    paths: tuple[Tokens, ...]

    @classmethod
    def of(cls, words: Sequence[Tokens]) -> LabelTree:
        """Build the tree of the label words' tokens."""
        nodes = sorted({word[:length] for word in words for length in range(len(word))})
        paths = [node for node in nodes if not any(other[: len(node)] == node for other in nodes if other != node)]
        return cls(tuple(words), tuple(nodes), tuple(paths))

    def continuations(self) -> dict[Tokens, tuple[int, ...]]:
        """For each label word that begins others, the tokens with which they go on.

        Such a word is scored with its end, or it could never lose: all that begins with the longer word begins with it too.
        """
        behind: dict[Tokens, set[int]] = {word: set() for word in self.words}
        for word in self.words:
            for length in range(1, len(word)):
                if word[:length] in behind:
                    behind[word[:length]].add(word[length])
        return {word: tuple(sorted(tokens)) for word, tokens in behind.items() if tokens}

    @property
    def is_flat(self) -> bool:
        """Whether every label word is a single token."""
        return all(len(word) == 1 for word in self.words)


class Encoder(PromptEncoder):
    """Turns the texts of a task with labels into tokens of one model. No text and no label word makes a control token."""

    answers = "label word"

    def __init__(self, backbone: Backbone, task: LabelledTask) -> None:
        """Tokenise the template and the label words.

        Raises:
            TaskError: as :class:`~ifedicl.backbone.prompts.PromptEncoder`; the template leaves no room for text, a label word
                has no separate tokens behind the prompt, or two label words have the same tokens.
        """
        super().__init__(backbone, task)
        self._words_of = task
        self.tree = LabelTree.of(self._label_words())
        self.reserve(max(map(len, self.tree.words)))

    def _label_words(self) -> tuple[Tokens, ...]:
        words: list[Tokens] = []
        for word in self._words_of.words:
            tokens = self.ending(word)
            if not tokens:
                raise self._no_boundary(word)
            if tokens in words:
                twin = self._words_of.words[words.index(tokens)]
                raise TaskError(
                    f"task.label_words: {twin!r} and {word!r} have the same tokens {tokens}. Choose words that differ"
                )
            words.append(tokens)
        return tuple(words)

    def _no_boundary(self, word: str) -> TaskError:
        return TaskError(
            f"task.label_words: {word!r} has no separate tokens behind the template {self._task.template!r} with separator "
            f"{self._task.separator!r}: the tokenizer joins them. End the template without a space (for instance with ':' "
            f"after {TEXT_FIELD}), and set the separator to ' '"
        )
