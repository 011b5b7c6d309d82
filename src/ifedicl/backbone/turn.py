"""The prompt of a text: the task's template, as it stands or in the model's own chat turn."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from ifedicl.errors import TaskError
from ifedicl.kinds.any_task import TEXT_FIELD, AnyTask

DATE = "26 Jul 2024"
"""What a chat template that asks for today's date gets, at midnight UTC: the day that Llama's own templates fall back to.

Prompts of one digest must be the same everywhere and always, so this day never changes.
"""
_AT = datetime(2024, 7, 26, tzinfo=UTC)
_WORDS = {"a": "Fri", "A": "Friday", "b": "Jul", "h": "Jul", "B": "July", "p": "AM", "s": "1721952000"}
_WORDS |= {"c": "Fri Jul 26 00:00:00 2024", "x": "07/26/24", "X": "00:00:00"}
"""Directives of ``strftime`` that depend on the machine's language or time zone."""
_NUMBERS = frozenset("YyCGmdejuwUWVFDTRHIMSfzZ%")

_BEGIN, _END = "\ufdd2", "\ufdd3"  # around a text, while its place in a chat turn is looked for
RESERVED = dict.fromkeys(range(0xFDD0, 0xFDD4), "\ufffd")
"""For :meth:`str.translate`: four characters that Unicode sets aside for programs' own use. Here they stand for no text."""

_DATED = re.compile(r"""\bstrftime_now\s*\(\s*(?P<quote>['"])(?P<form>[^'"\\]*)(?P=quote)\s*\)""")
_CLOCK = re.compile(r"\bstrftime_now\b(?!\s+is\s+(not\s+)?defined\b)")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_DRAWS = re.compile(r"\|\s*random\b|\blipsum\b")
_PROBE = " ".join(f"It was {hour} o'clock." for hour in range(100))  # long: some templates cut


class Turn:
    """The prompts of one task for one model, as characters."""

    def __init__(self, tokenizer: Any, task: AnyTask, source: str) -> None:
        """Try the chat template, if the task asks for one.

        Args:
            tokenizer: the model's; it has the chat template.
            task: the task.
            source: names the model in messages.

        Raises:
            TaskError: the model has no chat template; or it has none for a plain turn, is broken, raises, drops or changes the
                text, or draws at random.
        """
        self._tokenizer = tokenizer
        self._task = task
        self._source = source
        if task.turn == "raw":
            return
        if not tokenizer.chat_template:
            raise TaskError(f"task.turn is 'chat', but {source} has no chat template; use turn = 'raw'")
        self._template = self._chosen()
        if _PROBE not in self._chat(task.prompt(_PROBE), shows=True):
            raise self._unusable("it drops or changes the user's message")
        self._of_nothing = self._chat(task.prompt(""), shows=True)

    def prompt(self, text: str) -> str:
        """The prompt.

        Raises:
            TaskError: the chat template raises for this text, or drops it.
        """
        content = self._task.prompt(text)
        if self._task.turn == "raw":
            return content
        prompt = self._chat(content)
        if prompt == self._of_nothing and text.strip():
            raise self._unusable("it drops a text of the data")
        return prompt

    def parts(self, text: str) -> tuple[str, ...]:
        """The prompt in parts, by turns of the template and of the text, from template to template.

        Raises:
            TaskError: as :meth:`prompt`.
        """
        text = text.translate(RESERVED)
        if self._task.turn == "raw":
            head, tail = self._task.template.split(TEXT_FIELD)
            return head, text, tail
        core = text.strip()  # chat templates trim the message: the marks must not keep white space at its ends
        before, _, after = text.partition(core) if core else ("", "", text)
        marked = self._chat(self._task.prompt(f"{before}{_BEGIN}{core}{_END}{after}"))
        parts = re.split(f"{_BEGIN}(.*?){_END}", marked, flags=re.DOTALL)
        if "".join(parts) != self.prompt(text):
            raise self._unusable("it changes a text of the data")
        return tuple(parts)

    def _chosen(self) -> str:
        """The chat template for a plain turn, with the fixed date in place of today's.

        Its source is changed, since transformers lets a caller replace no function that a template calls.
        """
        try:
            template = str(self._tokenizer.get_chat_template())
            dated = _DATED.sub(lambda call: f"{call['quote']}{fixed_time(call['form'])}{call['quote']}", template)
        except ValueError as error:
            raise self._unusable(str(error)) from error
        if _CLOCK.search(_COMMENT.sub("", dated)):
            raise self._unusable("it reads the clock in another way than strftime_now('...')")
        if _DRAWS.search(dated):
            raise self._unusable("it draws at random, so equal texts would have different prompts")
        return dated

    def _chat(self, content: str, *, shows: bool = False) -> str:
        """The chat turn around ``content``; ``shows``: a message may quote the template's error, since it quotes no text."""
        turn = [{"role": "user", "content": content}]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turn, chat_template=self._template, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # templates are programs: they raise jinja's errors, those of Python, and their own
            detail = f": {error}" if shows else ""
            raise self._unusable(f"it raises {type(error).__name__}{detail}") from error

    def _unusable(self, reason: str) -> TaskError:
        return TaskError(
            f"task.turn is 'chat', but the chat template of {self._source} cannot be used: {reason}. Use turn = 'raw', or a "
            "model whose chat template takes one message of the user"
        )


def fixed_time(form: str) -> str:
    """``strftime`` at midnight UTC on :data:`DATE`, in English.

    Raises:
        ValueError: a directive that Python's ``strftime`` does not have.
    """

    def written(match: re.Match[str]) -> str:
        flag, directive = match.groups()
        if directive not in _WORDS and directive not in _NUMBERS:
            raise ValueError(f"strftime_now does not know %{flag}{directive}")
        value = _WORDS.get(directive) or _AT.strftime(f"%{directive}")
        return (value.lstrip("0") or "0") if flag == "-" else value

    return re.sub(r"%(-?)(.)", written, form, flags=re.DOTALL)
