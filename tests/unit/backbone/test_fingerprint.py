"""Which model is this? The fingerprint, its cache, and the stored tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ifedicl import files
from ifedicl.backbone import fingerprint
from ifedicl.backbone.fingerprint import fingerprint_of, stored_tensors
from ifedicl.backbone.load import Backbone
from ifedicl.errors import (
    StorageError,
)
from tests.support import tiny
from tests.support.checkpoints import WEIGHTS, _other_shape, reconfigured, rewritten, sharded


@pytest.mark.parametrize("shards", [2, 5])
def test_the_fingerprint_does_not_depend_on_how_tensors_are_spread_over_files(
    model: Path, backbone: Backbone, shards: int
) -> None:
    other = tiny.load(sharded(model, shards))
    assert other.fingerprint == backbone.fingerprint
    for name, tensor in other.model.state_dict().items():
        assert torch.equal(tensor, backbone.model.state_dict()[name]), name


def test_the_fingerprint_does_not_depend_on_the_folder_or_the_dtype_it_is_loaded_in(model: Path, backbone: Backbone) -> None:
    assert tiny.load(model, dtype="bfloat16").fingerprint == backbone.fingerprint


def _one_bit(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"].view(np.uint32)[0, 0] ^= 1


def _other_dtype(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.float16)


def _other_name(tensors: dict[str, Any]) -> None:
    tensors["lm_head.wait"] = tensors.pop("lm_head.weight")


@pytest.mark.parametrize("change", [_one_bit, _other_dtype, _other_shape, _other_name])
def test_the_fingerprint_changes_with_the_weights(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    before = fingerprint_of(model)
    rewritten(model, change)
    assert fingerprint_of(model) != before


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_the_fingerprint_changes_with_the_tokenizer(model: Path, name: str) -> None:
    before = fingerprint_of(model)
    file = model / name
    file.write_text((file.read_text() if file.exists() else "") + "\n")
    assert fingerprint_of(model) != before


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_parameters"])
def test_the_fingerprint_changes_with_what_the_configuration_makes_of_the_weights(model: Path, name: str) -> None:
    before = fingerprint_of(model)
    reconfigured(model, **{name: {"rms_norm_eps": 0.5, "rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}[name]})
    assert fingerprint_of(model) != before


def test_the_fingerprint_changes_with_a_chat_template_in_the_tokenizer_configuration(model: Path) -> None:
    before = fingerprint_of(model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages[0].content }}!"}))
    assert fingerprint_of(model) != before


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was hashed: names of tensors and files."""
    names: list[str] = []

    def named(digest: Callable[[Any], str]) -> Callable[[Any], str]:
        def of(what: Any) -> str:
            names.append(what.name)
            return digest(what)

        return of

    monkeypatch.setattr(fingerprint, "_content_digest", named(fingerprint._content_digest))
    monkeypatch.setattr(files, "sha256_of", named(files.sha256_of))
    return names


def test_a_fingerprint_is_remembered_while_the_files_stay_as_they_are(model: Path, hashed: list[str]) -> None:
    first = fingerprint_of(model)
    assert len(hashed) == len(load_file(model / WEIGHTS)) + 1
    hashed.clear()
    assert fingerprint_of(model) == first
    assert hashed == []


def test_a_touched_file_is_hashed_again(model: Path, hashed: list[str]) -> None:
    first = fingerprint_of(model)
    hashed.clear()
    (model / WEIGHTS).touch()
    assert fingerprint_of(model) == first
    assert "lm_head.weight" in hashed


def test_a_copy_in_another_place_is_hashed_again(model: Path, tmp_path: Path, hashed: list[str]) -> None:
    first = fingerprint_of(model)
    hashed.clear()
    assert fingerprint_of(shutil.copytree(model, tmp_path / "copy")) == first
    assert hashed


def test_a_cache_that_cannot_be_written_costs_time_only(
    model: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise StorageError("no")

    monkeypatch.setattr(files, "write_text", refuse)
    assert fingerprint_of(model) == fingerprint_of(model)
    assert hashed.count("lm_head.weight") == 2


def test_the_stored_tensors_are_those_of_the_file(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    stored = {tensor.name: tensor for tensor in stored_tensors(model)}
    assert stored.keys() == tensors.keys()
    for name, tensor in stored.items():
        assert (tensor.shape, tensor.elements) == (tensors[name].shape, tensors[name].size)
        assert (model / WEIGHTS).read_bytes()[tensor.start : tensor.end] == tensors[name].tobytes()
