"""Text to tokens: prompts that fit the window, and label words as the token sequences that follow them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ifedicl.backbone.load import Backbone
from ifedicl.errors import DataError, TaskError
from ifedicl.task import TEXT_FIELD, Task

Tokens: TypeAlias = tuple[int, ...]

# Two texts that end differently: label words must be cut into the same tokens behind both.
_PROBES = ("a", "It was 5 o'clock!")


@dataclass(frozen=True)
class Prompts:
    """Encoded texts.

    Attributes:
        tokens: one prompt a text.
        truncated: how many texts were cut to fit the window.
    """

    tokens: tuple[Tokens, ...]
    truncated: int


@dataclass(frozen=True)
class EncodedExamples:
    """Labelled texts, encoded.

    Attributes:
        prompts: of the ``N`` texts.
        labels: the ``N`` labels' positions in the task.
    """

    prompts: Prompts
    labels: tuple[int, ...]


@dataclass(frozen=True)
class LabelTree:
    """The label words' tokens as a tree, so that tokens they share are run once.

    A *node* is a sequence of tokens after which at least one more token of a label word is read; the root is ``()``. A
    *path* is a node that is no beginning of another: running prompt + path visits all nodes on the way. With label words of
    one token each there is one node and one path, both empty.

    Attributes:
        words: the tokens of each label word.
        nodes: all nodes.
        paths: the paths.
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

    @property
    def is_flat(self) -> bool:
        """Whether every label word is a single token."""
        return all(len(word) == 1 for word in self.words)


class Encoder:
    """Turns the texts of one task into tokens of one model."""

    def __init__(self, backbone: Backbone, task: Task) -> None:
        """Tokenise the template and the label words.

        Raises:
            TaskError: the template leaves no room for text, a label word has no tokens of its own behind the prompt, two label
                words have the same tokens, or the model has no chat turn although the task asks for one.
        """
        self._tokenizer = backbone.tokenizer
        self._task = task
        if task.turn == "chat" and not self._tokenizer.chat_template:
            raise TaskError(f"task.turn is 'chat', but {backbone.source} has no chat template; use turn = 'raw'")
        self.tree = LabelTree.of(self._label_words())
        self._limit = backbone.context_window - max(map(len, self.tree.words))
        self._empty = self._tokens(self._rendered(""))
        if len(self._empty) >= self._limit:
            raise TaskError(
                f"the template takes {len(self._empty)} tokens and the longest label word {max(map(len, self.tree.words))}, "
                f"of a window of {backbone.context_window}; nothing is left for text. Shorten task.template"
            )

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """Encode texts; too long ones are cut at their end, never the template.

        Raises:
            DataError: a text adds no token to the template.
        """
        if not texts:
            return Prompts((), 0)
        encoded = [tuple(tokens) for tokens in self._batch([self._rendered(text) for text in texts])]
        truncated = 0
        for position, tokens in enumerate(encoded):
            if tokens == self._empty:
                raise DataError(f"text number {position + 1} has no tokens: it is empty for this model. Remove it")
            if len(tokens) > self._limit:
                encoded[position] = self._cut(texts[position])
                truncated += 1
        return Prompts(tuple(encoded), truncated)

    def text_span(self, prompt: Tokens) -> range:
        """Where the text stands in an encoded prompt: the tokens between those that the bare template begins and ends with.

        The first token of all is left out where others remain: models use it as a resting place, and its state says nothing.
        """
        most = min(len(prompt) - 1, len(self._empty))
        before = _shared(prompt, self._empty, most)
        after = _shared(prompt[::-1], self._empty[::-1], most - before)
        end = len(prompt) - after
        return range(min(max(before, 1), end - 1), end)

    def _cut(self, text: str) -> Tokens:
        """The longest beginning of ``text`` whose prompt fits, by bisection: right for every tokenizer."""
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if len(self._tokens(self._rendered(text[:middle]))) <= self._limit:
                fits = middle
            else:
                too_long = middle
        return self._tokens(self._rendered(text[:fits]))

    def _label_words(self) -> tuple[Tokens, ...]:
        words: list[Tokens] = []
        for word in self._task.label_words:
            endings = {self._ending(probe, word) for probe in _PROBES}
            tokens = endings.pop()
            if endings or not tokens:
                raise self._no_boundary(word)
            if tokens in words:
                twin = self._task.label_words[words.index(tokens)]
                raise TaskError(f"label words {twin!r} and {word!r} have the same tokens {tokens}; choose words that differ")
            words.append(tokens)
        return tuple(words)

    def _ending(self, probe: str, word: str) -> Tokens:
        """The tokens that ``word`` adds to a prompt, from tokenising both together."""
        prompt = self._rendered(probe)
        alone, joint = self._tokens(prompt), self._tokens(prompt + self._task.separator + word)
        if joint[: len(alone)] != alone:
            raise self._no_boundary(word)
        return joint[len(alone) :]

    def _no_boundary(self, word: str) -> TaskError:
        return TaskError(
            f"label word {word!r} has no tokens of its own behind the template {self._task.template!r} with separator "
            f"{self._task.separator!r}: the tokenizer joins them. End the template without a space (after {TEXT_FIELD}, for "
            "instance ':'), and let the separator be ' '"
        )

    def _rendered(self, text: str) -> str:
        prompt = self._task.prompt(text)
        if self._task.turn == "raw":
            return prompt
        turn = [{"role": "user", "content": prompt}]
        return str(self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def _tokens(self, prompt: str) -> Tokens:
        return tuple(self._batch([prompt])[0])

    def _batch(self, prompts: list[str]) -> list[list[int]]:
        # A chat turn brings its own special tokens.
        tokens: list[list[int]] = self._tokenizer(prompts, add_special_tokens=self._task.turn == "raw")["input_ids"]
        return tokens


def _shared(first: Tokens, second: Tokens, most: int) -> int:
    """With how many equal tokens, ``most`` at most, both begin."""
    return next((place for place in range(most) if first[place] != second[place]), most)
