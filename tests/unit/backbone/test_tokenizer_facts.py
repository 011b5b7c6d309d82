"""The fingerprint sees whatever changes the loaded tokenizer, and nothing else that stands beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from ifedicl.backbone.fingerprint import fingerprint_of
from ifedicl.backbone.tokenizer_facts import unhashed_behaviour
from tests.support import tiny
from tests.support.checkpoints import reconfigured


def _set(folder: Path, file: str = "tokenizer_config.json", **values: Any) -> None:
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **values}))


def _token(content: str, **flags: bool) -> dict[str, Any]:
    usual = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    return {"content": content, **usual, **flags}


def _versioned_file(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.4.9.json").write_text(json.dumps({**content, "normalizer": {"type": "NFKC"}}))
    _set(folder, fast_tokenizer_files=["tokenizer.4.9.json", "tokenizer.json"])


def _more_chats(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text("{{ messages[0].content }}?")


CHANGES: dict[str, Callable[[Path], None]] = {
    "a token in the settings": lambda folder: _set(folder, added_tokens_decoder={"9": _token("loud")}),
    "a token that takes the space before it": lambda folder: _set(
        folder, added_tokens_decoder={"0": _token("<pad>", lstrip=True, special=True)}
    ),
    "a control token in the settings": lambda folder: _set(folder, extra_special_tokens=["fan"]),
    "added_tokens.json": lambda folder: _set(folder, "added_tokens.json", bread=11),
    "special_tokens_map.json": lambda folder: _set(folder, "special_tokens_map.json", cls_token="table"),
    "control tokens are split": lambda folder: _set(folder, split_special_tokens=True),
    "another tokenizer file": _versioned_file,
    "more chat templates": _more_chats,
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_fingerprint_changes_with_all_that_changes_tokens(model: Path, name: str) -> None:
    before = fingerprint_of(model)
    CHANGES[name](model)
    assert fingerprint_of(model) != before


def test_the_fingerprint_changes_with_the_control_tokens_that_a_chat_template_names(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    _set(model, bos_token="<pad>")  # the token of config.json
    before = fingerprint_of(model)
    _set(model, bos_token="m")
    assert fingerprint_of(model) != before


@pytest.mark.parametrize(
    "values",
    [
        {"do_lower_case": False, "padding_side": "left", "model_max_length": 5, "clean_up_tokenization_spaces": True},
        {"added_tokens_decoder": {"0": _token("<pad>", special=True)}, "extra_special_tokens": ["<pad>"]},
        {"eos_token": "<pad>", "bos_token": "<pad>"},
        {"of_next_year": [1]},
    ],
)
def test_the_fingerprint_does_not_change_with_what_changes_no_token(model: Path, values: dict[str, Any]) -> None:
    before = fingerprint_of(model)
    _set(model, **values)
    assert fingerprint_of(model) == before


def test_a_usual_beginning_of_texts_adds_nothing(model: Path) -> None:
    raw = Tokenizer.from_file(str(model / "tokenizer.json"))
    raw.post_processor = processors.TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    raw.save(str(model / "tokenizer.json"))
    before = fingerprint_of(model)
    _set(model, bos_token="<pad>", chat_template=None)
    (model / "special_tokens_map.json").write_text('{"bos_token": "<pad>"}')
    assert fingerprint_of(model) == before
    reconfigured(model, transformers_version="4.1")  # not part of it either
    assert fingerprint_of(model) == before


def test_a_folder_without_tokenizer_json_is_told_by_its_other_files(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())["model"]
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text(json.dumps({**content["vocab"], "<|endoftext|>": len(content["vocab"])}))
    (model / "merges.txt").write_text("\n".join(" ".join(pair) for pair in content["merges"]))
    _set(model, tokenizer_class="GPT2Tokenizer")
    before = fingerprint_of(model)
    _set(model, "added_tokens.json", shoes=12)
    assert fingerprint_of(model) != before


def test_a_token_that_the_settings_make_a_control_token_changes_the_fingerprint(model: Path) -> None:
    raw = Tokenizer.from_file(str(model / "tokenizer.json"))
    raw.add_tokens(["warm bread"])  # one token, in a text too; a control token in a text is split
    raw.save(str(model / "tokenizer.json"))
    before = fingerprint_of(model)
    _set(model, added_tokens_decoder={"320": _token("warm bread", special=True)})
    assert fingerprint_of(model) != before


def test_a_usual_folder_without_tokenizer_json_adds_nothing(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "gpt2", "gpt2")
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "vocab.json").write_text(json.dumps({**content["vocab"], "<|endoftext|>": len(content["vocab"])}))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in content["merges"]))
    before = fingerprint_of(folder)
    _set(folder, model_max_length=99, eos_token="<|endoftext|>")
    assert fingerprint_of(folder) == before
    hashed = [folder / "vocab.json", folder / "merges.txt"]
    assert unhashed_behaviour(folder, hashed, json.loads((folder / "config.json").read_text()), {}) == ""


def test_a_tokenizer_that_cannot_be_loaded_still_has_a_fingerprint(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    assert len(fingerprint_of(model)) == 64


# What is remembered


def test_another_file_of_the_same_size_and_time_is_hashed_again(model: Path, tmp_path: Path) -> None:
    weights, other = model / "model.safetensors", tiny.save_model(tmp_path / "other", initializer_range=0.3)
    before, told = fingerprint_of(model), weights.stat()
    replacement = other / "model.safetensors"
    assert replacement.stat().st_size == told.st_size
    os.utime(replacement, ns=(told.st_atime_ns, told.st_mtime_ns))
    os.replace(replacement, weights)
    assert fingerprint_of(model) != before


def test_a_file_that_is_written_to_and_set_back_in_time_is_hashed_again(model: Path) -> None:
    weights = model / "model.safetensors"
    before, told = fingerprint_of(model), weights.stat()
    with weights.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x01")
    os.utime(weights, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (told.st_size, told.st_mtime_ns)
    assert fingerprint_of(model) != before


def test_a_spoilt_note_is_not_taken_for_a_fingerprint(model: Path, tmp_path: Path) -> None:
    before = fingerprint_of(model)
    (note,) = (tmp_path / "cache" / "ifedicl" / "fingerprints").iterdir()
    for content in ("", before[:60], before.upper() + "\n"):
        note.write_text(content)
        assert fingerprint_of(model) == before
