"""A GGUF file is the model it was made from, or is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ifedicl import files
from ifedicl.backbone import gguf as gguf_module
from ifedicl.backbone.fingerprint import fingerprint_of, stored_tensors
from ifedicl.backbone.licence import terms_of
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.errors import (
    BackboneError,
    NotEnoughMemoryError,
)
from ifedicl.settings import ModelSettings
from tests.support import tiny
from tests.support.checkpoints import WEIGHTS, raising, write_gguf


@pytest.fixture(scope="module")
def gguf_file(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(llama_folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_file_is_the_model_it_was_made_from(gguf_file: Path, backbone: Backbone, tmp_path: Path) -> None:
    loaded = load_backbone(ModelSettings(source=str(gguf_file), device="cpu", dtype="float32"), cache=tmp_path / "own")
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    texts = [example.text for example in tiny.examples(6)]
    scores = []
    for one in (backbone, loaded):
        scorer = Scorer(one, tiny.TASK)
        scores.append(scorer.log_probabilities(scorer.encoder.prompts(texts)))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    assert loaded.fingerprint == files.sha256_of(gguf_file) != backbone.fingerprint
    assert loaded.context_window == backbone.context_window
    assert [folder.name for folder in (tmp_path / "own" / "gguf").iterdir()] == [loaded.fingerprint]


def test_a_gguf_file_is_converted_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gguf_module.converted_folder(gguf_file)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", raising(AssertionError("converted again")))
    assert gguf_module.converted_folder(gguf_file) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert WEIGHTS in before


def test_a_conversion_that_is_interrupted_leaves_nothing_that_would_be_taken_for_a_model(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", lambda **place: Interrupting())
        with pytest.raises(KeyboardInterrupt):
            gguf_module.converted_folder(gguf_file, tmp_path / "own")
    assert list((tmp_path / "own" / "gguf").iterdir()) == []
    assert (gguf_module.converted_folder(gguf_file, tmp_path / "own") / "tokenizer.json").is_file()


class Interrupting:
    def save_pretrained(self, folder: Path) -> None:
        raise KeyboardInterrupt


def test_a_gguf_file_that_lacks_a_tensor_is_refused_and_not_filled_with_random_numbers(
    llama_folder: Path, tmp_path: Path
) -> None:
    file = write_gguf(llama_folder, tmp_path / "holed.gguf", without="model.layers.1.mlp.down_proj.weight")
    with pytest.raises(
        BackboneError, match=r"holed\.gguf lacks 1 tensors, for instance model\.layers\.1\.mlp\.down_proj\.weight"
    ):
        gguf_module.converted_folder(file, tmp_path / "own")
    assert not (tmp_path / "own" / "gguf").exists()


def test_a_gguf_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"nothing\.gguf: there is no such GGUF file"):
        tiny.load(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    "length",
    [
        0,
        3,
        *(pytest.param(length) for length in (8, 24, 500)),
        0.5,
        0.99,
    ],
)
def test_a_torn_gguf_file_is_refused(gguf_file: Path, tmp_path: Path, length: float) -> None:
    whole = gguf_file.read_bytes()
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(whole[: length if isinstance(length, int) else int(length * len(whole))])
    with pytest.raises(BackboneError, match=r"torn\.gguf: cannot be read as GGUF.*may be torn"):
        tiny.load(torn)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("a text with another ending" * 50)
    with pytest.raises(BackboneError, match="cannot be read as GGUF"):
        tiny.load(tmp_path / "text.gguf")


def test_too_little_memory_for_a_gguf_file_is_found_before_it_is_converted(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=30 << 10))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(NotEnoughMemoryError, match="MiB in float32"):
        gguf_module.converted_folder(gguf_file, tmp_path / "cache")


def test_a_second_copy_of_the_weights_counts_for_nothing(model: Path) -> None:
    before = fingerprint_of(model)
    (model / "consolidated.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    assert fingerprint_of(model) == before
    assert {tensor.file.name for tensor in stored_tensors(model)} == {"model.safetensors"}


# Models in parts


@pytest.fixture
def parts(llama_folder: Path, tmp_path: Path) -> list[Path]:
    """The tiny Llama in four files."""
    (tmp_path / "parts").mkdir()
    write_gguf(llama_folder, tmp_path / "parts" / "tiny.gguf", tensors_each=9)
    return sorted((tmp_path / "parts").iterdir())


def test_a_gguf_model_in_parts_is_the_model_whichever_part_is_named(
    parts: list[Path], gguf_file: Path, backbone: Backbone, tmp_path: Path
) -> None:
    assert [part.name for part in parts] == [f"tiny-0000{number}-of-00004.gguf" for number in (1, 2, 3, 4)]
    loaded = [
        load_backbone(ModelSettings(source=str(part), device="cpu", dtype="float32"), cache=tmp_path / "own")
        for part in (parts[0], parts[2])
    ]
    for one in loaded:
        for name, tensor in backbone.model.state_dict().items():
            assert torch.equal(one.model.state_dict()[name], tensor), name
        assert one.tokenizer("the soup was warm")["input_ids"] == backbone.tokenizer("the soup was warm")["input_ids"]
    assert loaded[0].fingerprint == loaded[1].fingerprint != gguf_module.fingerprint_of(gguf_file)
    assert [folder.name for folder in (tmp_path / "own" / "gguf").iterdir()] == [
        loaded[0].fingerprint
    ]  # the joined file is gone


def test_the_fingerprint_of_a_model_in_parts_changes_with_each_of_them(parts: list[Path]) -> None:
    before = gguf_module.fingerprint_of(parts[0])
    content = bytearray(parts[3].read_bytes())
    content[-5] ^= 1
    parts[3].write_bytes(content)
    assert gguf_module.fingerprint_of(parts[0]) != before


def test_a_missing_part_of_a_gguf_model_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(
        BackboneError, match=r"one of 4 parts; 1 are not in its folder: tiny-00002-of-00004\.gguf\. Put all parts"
    ):
        tiny.load(parts[3])


def test_a_part_under_another_name_is_told_by_its_header(parts: list[Path]) -> None:
    with pytest.raises(
        BackboneError, match=r"one of 4 parts by its header, but its name is not that of a part; allowed: NAME-00001"
    ):
        tiny.load(parts[0].rename(parts[0].with_name("mine.gguf")))


def test_a_part_of_another_model_is_refused(parts: list[Path], llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_gguf(llama_folder, tmp_path / "other" / "o.gguf", without="lm_head.weight", tensors_each=8)
    parts[3].write_bytes((tmp_path / "other" / "o-00004-of-00004.gguf").read_bytes())
    with pytest.raises(BackboneError, match=r"hold \d+ tensors; allowed: the \d+ that its header tells"):
        tiny.load(parts[0])


def test_the_licence_of_a_torn_file_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(BackboneError, match="may be torn"):
        terms_of(ModelSettings(source=str(tmp_path / "torn.gguf")))
