"""Text is text: the characters of a control token, such as ``<|endoftext|>``, are plain characters within a text.

Tokenizers look for the names of their special tokens in everything that they read. Only the template and the chat turn may make
them; so where a text or a label word holds such a name, it is read by a copy of the tokenizer in which the special tokens have
other names, and the template is given these names. All else in the copy is as it was, so all other tokens are too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram

from ifedicl.backbone.turn import RESERVED

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # of RESERVED
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how some vocabularies write a byte of a rare character
_MARKER = re.compile(r"<[|｜].+[|｜]>", re.DOTALL)


class ControlTokens:
    """The control tokens of a tokenizer: special ones, those that its chat template names, and ``<|…|>``.

    Other added tokens (white space, HTML tags) are text. A chat template's words and white space are text, too.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Find them; nothing is copied yet."""
        self._tokenizer = tokenizer
        template = str(tokenizer.chat_template or "")
        added = tokenizer.added_tokens_decoder
        names = {int(number): str(token.content) for number, token in added.items() if _is_control(token, template)}
        self._ids = frozenset(names) - _unknown(tokenizer, names)
        self._names = {name: f"{_OPEN}{number}{_CLOSE}" for number, name in names.items()}
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def named_in(self, text: str) -> str | None:
        """The first control token whose name stands in a text."""
        found = self._pattern.search(text)
        return None if found is None else found[0]

    def among(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The control tokens among ``tokens``, in order."""
        return tuple(token for token in tokens if token in self._ids)

    def adds(self, tokens: Sequence[int], template: Sequence[int]) -> bool:
        """Whether a prompt's ``tokens`` hold a control token beside those of the template, which come in their order."""
        expected = iter(self.among(template))
        return not all(token in expected for token in self.among(tokens))  # ``in`` takes from the iterator up to the token

    def encoded(self, parts: Sequence[str], *, adds_special: bool) -> tuple[int, ...] | None:
        """The tokens of a prompt of which every second part is plain text.

        Args:
            parts: the template, a text, the template, a text, and so on.
            adds_special: whether the tokenizer adds its own special tokens, such as one for the beginning.

        Returns:
            None if this tokenizer cannot be copied with other names.
        """
        if self._copy is None:
            return None
        written = [self._renamed(part) if place % 2 == 0 else part.translate(RESERVED) for place, part in enumerate(parts)]
        return tuple(self._copy.encode("".join(written), add_special_tokens=adds_special).ids)

    def _renamed(self, template: str) -> str:
        return self._pattern.sub(lambda match: self._names[match[0]], template)

    @cached_property
    def _copy(self) -> Tokenizer | None:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        try:
            return Tokenizer.from_str(json.dumps(_with_names(json.loads(backend.to_str()), self._names)))
        except Exception:  # a part of the tokenizer that has no JSON: the library raises a bare Exception
            return None


def _is_control(token: Any, template: str) -> bool:
    content = str(token.content)
    if _BYTE.fullmatch(content):
        return False
    if token.special or _MARKER.fullmatch(content):
        return bool(content.strip())
    return content in template and not content.isspace() and not content.isalnum()


def _unknown(tokenizer: Any, names: Mapping[int, str]) -> set[int]:
    """The token for characters that the vocabulary lacks: text makes it without naming it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # A byte-level BPE may state one for other uses (GPT-2: its end of text); its model then has none.
    holder = tokenizer if backend is None or isinstance(backend.model, Unigram) else backend.model
    unknown = getattr(holder, "unk_token", None)
    return {number for number, name in names.items() if name == unknown}


def _with_names(state: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The JSON of a tokenizer whose tokens ``names`` have other names and the same numbers. Nothing else builds them."""
    model = state["model"]
    added = [{**token, "content": names.get(token["content"], token["content"])} for token in state["added_tokens"]]
    if isinstance(model["vocab"], list):  # Unigram: pieces and scores
        vocabulary: Any = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        vocabulary = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    changed = {**model, "vocab": vocabulary}
    if "unk_token" in model:
        changed["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = [merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model["merges"]]
        changed["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & set(names)]
    return {**state, "added_tokens": added, "model": changed, "truncation": None, "padding": None}
