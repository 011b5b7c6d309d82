"""What a folder's loaded tokenizer does beyond what the hashed files say.

The fingerprint hashes the tokenizer's main files and four of its settings. Other files and settings can change tokens, too:
``added_tokens.json``, ``special_tokens_map.json``, ``added_tokens_decoder``, ``do_lower_case``, and what later versions bring.
They are not listed here. The loaded tokenizer is compared with one that is made from the hashed files alone, on texts that show
a difference. If both do the same, as for nearly every model, nothing is added to the fingerprint.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

_PROBES = (
    "It was 5 o'clock, and 1234567890 people CAME to the NAÏVE café!",
    "cafe\u0301 \u212b \ufb01ne \uff21\uff22",  # combining accent, Angstrom sign, ligature, full width: normal forms show here
    "  two  spaces\tand\n\nlines \r\n ",
    "def f(x):\n    return x_1 + [2]",
    "你好，世界 こんにちは мир مرحبا \U0001f642",
    "x",
)
_NAMED = re.compile(r"\b((?:bos|eos|unk|sep|pad|cls|mask)_token)\b")


@dataclass(frozen=True)
class _Facts:
    """What a tokenizer does: tokens of the probes, with control tokens as text, and with those it adds at both ends."""

    plain: Sequence[Sequence[int]]
    as_text: Sequence[Sequence[int]]
    ends: Sequence[int]


def unhashed_behaviour(folder: Path, hashed: Sequence[Path], config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Empty if the hashed files and settings say what the tokenizer does, otherwise what it does, as JSON.

    Args:
        folder: of the model.
        hashed: the tokenizer's files that are part of the fingerprint.
        config: the content of ``config.json``.
        settings: the tokenizer's settings that are part of the fingerprint.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        probes = _probes(loaded)
        facts = _facts_of(loaded, probes)
        chat = _chat(loaded)
    except Exception:  # loading the model reports it
        return ""
    raw = _raw(folder / "tokenizer.json")
    is_told = raw is not None and _says(raw, facts, probes, config, settings)
    if not is_told:
        plain = _from_hashed(folder, hashed, settings)
        is_told = plain is not None and _facts_of(plain, probes) == facts
    if is_told and _tells_chat(loaded, hashed, raw, config, settings):
        return ""
    return json.dumps([facts.plain, facts.as_text, facts.ends, chat])


def _probes(loaded: Any) -> list[str]:
    added = sorted({str(token) for token in loaded.added_tokens_decoder.values()})
    return [*_PROBES, *(f"a {token} b{token}{token.upper()}c" for token in added)]


def _facts_of(tokenizer: Any, probes: list[str]) -> _Facts:
    plain = [list(tokens) for tokens in tokenizer(probes, add_special_tokens=False)["input_ids"]]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    as_text = plain if backend is None else _as_text(backend, probes)
    return _Facts(plain, as_text, list(tokenizer("x")["input_ids"]))


def _as_text(backend: Tokenizer, probes: list[str]) -> list[list[int]]:
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        return [list(found.ids) for found in backend.encode_batch(probes, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def _raw(file: Path) -> Tokenizer | None:
    try:
        raw = Tokenizer.from_file(str(file))
    except Exception:  # the library raises a bare Exception
        return None
    raw.no_padding()
    raw.no_truncation()
    return raw


def _says(raw: Tokenizer, facts: _Facts, probes: list[str], config: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether ``tokenizer.json`` alone, with the hashed settings for both ends, does what ``facts`` say."""
    if [list(found.ids) for found in raw.encode_batch(probes, add_special_tokens=False)] != facts.plain:
        return False
    if _as_text(raw, probes) != facts.as_text:
        return False
    content = raw.encode("x", add_special_tokens=False).ids
    theirs = list(raw.encode("x").ids)
    if facts.ends == theirs:
        return True
    before, after = around(list(facts.ends), content)
    told = [around(theirs, content), ([], [])]
    starts, ends = (_told_ids(raw, config, name) for name in ("bos_token", "eos_token"))
    fits_before = before in [side[0] for side in told] or (bool(settings.get("add_bos_token")) and set(before) <= starts)
    fits_after = after in [side[1] for side in told] or (bool(settings.get("add_eos_token")) and set(after) <= ends)
    return fits_before and fits_after


def around(tokens: list[int], content: list[int]) -> tuple[list[int], list[int]]:
    """The tokens before and after ``content``; all before if it is not there."""
    for start in range(len(tokens) - len(content) + 1):
        if tokens[start : start + len(content)] == content:
            return tokens[:start], tokens[start + len(content) :]
    return tokens, []


def _told_ids(raw: Tokenizer | None, config: Mapping[str, Any], name: str) -> set[int]:
    """Token ids of one role that the hashed files tell: from config.json, and those that tokenizer.json puts at the ends."""
    value = config.get(f"{name}_id")
    found = {int(number) for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)}
    if raw is not None:
        before, after = around(list(raw.encode("x").ids), list(raw.encode("x", add_special_tokens=False).ids))
        found |= {*before, *after}
    return found


def _from_hashed(folder: Path, hashed: Sequence[Path], settings: Mapping[str, Any]) -> Any:
    """The tokenizer that transformers makes of the hashed files alone; None if it cannot."""
    with tempfile.TemporaryDirectory() as place:
        for file in (*hashed, folder / "config.json"):
            if file.is_file():
                shutil.copyfile(file, Path(place) / file.name)
        text = json.dumps({key: value for key, value in settings.items() if value is not None})
        (Path(place) / "tokenizer_config.json").write_text(text, encoding="utf-8")
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
        except Exception:
            return None


def _chat(loaded: Any) -> list[Any]:
    """The chat templates and the control tokens that they name."""
    template = loaded.chat_template
    named = sorted(set(_NAMED.findall(json.dumps(template))))
    return [template, {name: getattr(loaded, name, None) for name in named}]


def _tells_chat(
    loaded: Any, hashed: Sequence[Path], raw: Tokenizer | None, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """Whether the chat templates are hashed, and the control tokens that they name are those of the hashed files."""
    template = loaded.chat_template
    if not template:
        return True
    told = [file.read_text(encoding="utf-8") for file in hashed if file.name == "chat_template.jinja"]
    setting = settings.get("chat_template")
    told += [setting] if isinstance(setting, str) else [str(item.get("template")) for item in setting or []]
    if not set(template.values() if isinstance(template, dict) else [template]) <= set(told):
        return False
    for name in set(_NAMED.findall(json.dumps(template))):
        token = getattr(loaded, name, None)
        if token is not None and loaded.convert_tokens_to_ids(str(token)) not in _told_ids(raw, config, name):
            return False
    return True
