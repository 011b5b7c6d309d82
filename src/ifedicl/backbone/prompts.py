"""Text to tokens: prompts that fit the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from ifedicl.backbone.control_tokens import ControlTokens
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lock import exclusive
from ifedicl.backbone.tokenizer_facts import around
from ifedicl.backbone.turn import Turn
from ifedicl.errors import DataError, InputError, TaskError
from ifedicl.kinds.any_task import AnyTask
from ifedicl.rows import SURROGATE, has_lone_surrogate

Tokens: TypeAlias = tuple[int, ...]

_PROBES = ("a", "It was 5 o'clock!")
"""Two texts with different endings: what follows a prompt must have the same tokens behind both."""


@dataclass(frozen=True)
class Prompts:
    """Encoded texts, one prompt each; ``truncated`` counts those cut to fit the window."""

    tokens: tuple[Tokens, ...]
    truncated: int


@dataclass(frozen=True)
class EncodedExamples:
    """``N`` encoded texts and their labels: what the scorer of the task's kind makes of an answer; of a class its position."""

    prompts: Prompts
    labels: tuple[Any, ...]


class PromptEncoder:
    """Turns the texts of one task of any kind into tokens of one model. Nothing in a text makes a control token."""

    answers: ClassVar[str] = "answer"
    """What follows the prompt, as messages name it."""

    def __init__(self, backbone: Backbone, task: AnyTask) -> None:
        """Tokenise the template.

        Raises:
            TaskError: the template begins with a token that the tokenizer adds, or the task asks for a chat turn and the
                model's chat template gives none (:class:`~ifedicl.backbone.turn.Turn`).
        """
        self._backbone = backbone
        self._task = task
        self._turn = Turn(backbone.tokenizer, task, backbone.source)
        self._control = ControlTokens(backbone.tokenizer)
        self._ids: dict[int, int] = {}  # a tokenizer makes a new number of 28 bytes for each token; these are kept once
        before, self._behind = self._added()
        (self._empty,) = self._joint([self._turn.prompt("")])
        if before and self._empty[len(before) : 2 * len(before)] == before:
            raise TaskError(
                f"task.template: it begins with {self._named(before)}, which the tokenizer of {backbone.source} adds itself: "
                "prompts would begin with it twice. Remove it from task.template"
            )
        self._limit = backbone.context_window

    def reserve(self, longest: int) -> None:
        """Keep so many tokens of the window free behind each prompt.

        Raises:
            TaskError: nothing is left for text.
        """
        self._limit = self._backbone.context_window - longest
        if len(self._empty) >= self._limit:
            raise TaskError(
                f"task.template: it takes {len(self._empty)} tokens and the longest {self.answers} {longest}, of a window of "
                f"{self._backbone.context_window}; nothing is left for text. Shorten task.template"
            )

    def prompts(self, texts: Sequence[str], *, tails: Sequence[str] = (), behind: Sequence[int] = ()) -> Prompts:
        """Encode texts; a text that is too long is cut at its end, the template never.

        Args:
            texts: what goes into the template.
            tails: stands behind each text and is never cut; none where it is empty.
            behind: tokens of the window to keep free behind each prompt; where it is empty those of :meth:`reserve`.

        Raises:
            DataError: a text adds no token to the template, holds an unpaired surrogate, or has the name of a control token and
                the tokenizer cannot read that as text.
            TaskError: the model's chat template raises for a text, or drops it.
        """
        if not texts:
            return Prompts((), 0)
        check_unicode(texts)
        ends = list(tails) or [""] * len(texts)
        limits = [self._backbone.context_window - count for count in behind] or [self._limit] * len(texts)
        encoded = self._encoded([text + end for text, end in zip(texts, ends, strict=True)])
        truncated = 0
        for position, tokens in enumerate(encoded):
            if tokens == self._empty:
                raise DataError(f"text number {position + 1} has no tokens: it is empty for this model. Remove it")
            if len(tokens) > limits[position]:
                encoded[position] = self._cut(texts[position], ends[position], limits[position], position + 1)
                truncated += 1
        return Prompts(tuple(encoded), truncated)

    def text_span(self, prompt: Tokens) -> range:
        """The positions of the text's tokens in an encoded prompt: those between the template's first and last tokens.

        The prompt's first token is left out if others remain: models use it as an attention sink, and its state says nothing.
        """
        most = min(len(prompt) - 1, len(self._empty))
        before = shared_length(prompt, self._empty, most)
        after = shared_length(prompt[::-1], self._empty[::-1], most - before)
        end = len(prompt) - after
        return range(min(max(before, 1), end - 1), end)

    def ending(self, word: str) -> Tokens:
        """The tokens that ``word`` adds to a prompt, whatever the text; none: the tokenizer joins it with some prompts."""
        first, second = (self._ending(probe, word) for probe in _PROBES)
        return first if first == second else ()

    def _ending(self, probe: str, word: str) -> Tokens:
        (alone,), (joint,) = self._encoded([probe]), self._encoded([probe], word)
        return joint[len(alone) :] if joint[: len(alone)] == alone else ()

    def _cut(self, text: str, end: str, limit: int, number: int) -> Tokens:
        """The prompt of the longest beginning of ``text`` that fits, by bisection: correct for every tokenizer."""
        if len(self._encoded([text[:1] + end])[0]) > limit:  # before bisection, which encodes a long end many times
            raise DataError(
                f"text number {number}: what it brings along leaves no room for it in a window of "
                f"{self._backbone.context_window} tokens. Shorten its options, or leave it out"
            )
        fits, too_long = 1, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if len(self._encoded([text[:middle] + end])[0]) <= limit:
                fits = middle
            else:
                too_long = middle
        return self._encoded([text[:fits] + end])[0]

    def _encoded(self, texts: Sequence[str], word: str | None = None) -> list[Tokens]:
        """The prompts' tokens, with the separator and a label word behind each if it is given."""
        ending = "" if word is None else self._task.separator + word
        rows = self._joint([self._turn.prompt(text) + ending for text in texts])
        for number, (text, tokens) in enumerate(zip(texts, rows, strict=True), start=1):
            named = self._control.named_in(text) or self._control.named_in(word or "")
            if named or self._control.adds(tokens, self._empty):
                rows[number - 1] = self._as_text(text, word, number, named)
        return rows

    def _as_text(self, text: str, word: str | None, number: int, named: str | None) -> Tokens:
        """As :meth:`_encoded`, with every character of text and word a plain one."""
        parts = self._turn.parts(text)
        if word is not None:
            parts = (*parts[:-1], parts[-1] + self._task.separator, word)
        with exclusive(self._backbone):
            tokens = self._control.encoded(parts, adds_special=self._adds_special)
        tokens = None if tokens is None else self._open(tokens)
        if tokens is None or self._control.adds(tokens, self._empty):
            what = "the characters of a control token" if named is None else f"{named!r}, a control token"
            reason = f"{what} of {self._backbone.source}, and its tokenizer cannot read them as plain text"
            if word is None:
                raise DataError(f"text number {number} holds {reason}. Remove them from the text")
            raise TaskError(f"task.{self.answers.replace(' ', '_')}s: {word!r} holds {reason}. Choose another word")
        return tokens

    def _joint(self, prompts: list[str]) -> list[Tokens]:
        """The tokenizer's own tokens of whole prompts."""
        with exclusive(self._backbone):
            rows = self._backbone.tokenizer(prompts, add_special_tokens=self._adds_special)["input_ids"]
        return [self._open(tuple(self._ids.setdefault(token, token) for token in tokens)) for tokens in rows]

    def _open(self, tokens: Tokens) -> Tokens:
        """A prompt without the tokens that the tokenizer adds behind it: the label word follows there, not an end of text."""
        most = len(tokens) - len(self._behind)
        return tokens[:most] if tokens[most:] == self._behind else tokens

    def _added(self) -> tuple[Tokens, Tokens]:
        """The tokens that the tokenizer adds before and behind a prompt."""
        if not self._adds_special:
            return (), ()
        with exclusive(self._backbone):
            whole, alone = (self._backbone.tokenizer("x", add_special_tokens=added)["input_ids"] for added in (True, False))
        before, behind = around(list(whole), list(alone))
        return tuple(before), tuple(behind)

    def _named(self, tokens: Tokens) -> str:
        return "".join(map(str, self._backbone.tokenizer.convert_ids_to_tokens(list(tokens))))

    @property
    def _adds_special(self) -> bool:
        return self._task.turn == "raw"  # a chat template adds the special tokens itself


def check_unicode(texts: Sequence[str]) -> None:
    """Check that tokenizers can read texts.

    Raises:
        InputError: one holds an unpaired surrogate; the message has its number.
    """
    for number, text in enumerate(texts, start=1):
        if has_lone_surrogate(text):
            raise InputError(f"text number {number}: {SURROGATE}; allowed: valid Unicode. Repair it, or leave it out")


def shared_length(first: Tokens, second: Tokens, most: int) -> int:
    """The length of the beginning that both share, at most ``most`` tokens."""
    return next((place for place in range(most) if first[place] != second[place]), most)
