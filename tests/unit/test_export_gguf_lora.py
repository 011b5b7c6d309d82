"""An adapter of Γ alone as a LoRA for llama.cpp: the file that llama.cpp's own converter makes of the LoRA for peft."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file
from typer.testing import CliRunner

from ifedicl import ExtractTask, errors
from ifedicl.backbone.encoding import Encoder
from ifedicl.backbone.load import Backbone
from ifedicl.cli import app
from in_llama_cpp import request_of
from tests.support import tiny
from tests.support.exports import servable

FAMILIES = {"llama": "llama", "mistral-sliding": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "phi3": "phi3"}
"""Names of llama.cpp, by the case."""
_PLACES = {"attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}


def _fields(reader: Any) -> dict[str, object]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_holds_the_tensors_of_the_lora_for_peft_under_the_names_of_llama_cpp(family: str, tmp_path: Path) -> None:
    backbone = tiny.family_backbone(family)
    adapter = servable(backbone, rank=8)
    adapter.export(tmp_path / "gguf", backbone, form="gguf-lora")
    adapter.export(tmp_path / "peft", backbone, form="lora")
    reader = GGUFReader(tmp_path / "gguf" / "adapter.gguf")
    assert _fields(reader) == {
        "general.architecture": FAMILIES[family],
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    found = {}
    for tensor in reader.tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(attn_output|ffn_down)\.weight\.lora_([ab])", tensor.name)
        assert match is not None, tensor.name
        place = f"base_model.model.model.layers.{match[1]}.{_PLACES[match[2]]}.lora_{match[3].upper()}.weight"
        found[place] = np.asarray(tensor.data)
    expected = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for place, stored in found.items():
        np.testing.assert_array_equal(stored, expected[place].numpy(), err_msg=place)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_half_the_bytes_are_as_exact_as_their_dtype(dtype: str, error: float, backbone: Backbone, tmp_path: Path) -> None:
    adapter = servable(backbone, rank=3)
    for name in ("float32", dtype):
        adapter.export(tmp_path / name, backbone, form="gguf-lora", dtype=name)
    whole, half = (GGUFReader(tmp_path / name / "adapter.gguf") for name in ("float32", dtype))
    for exact, short in zip(whole.tensors, half.tensors, strict=True):
        assert exact.name == short.name
        assert short.n_bytes * 2 == exact.n_bytes
        np.testing.assert_allclose(dequantize(short.data, short.tensor_type), exact.data, rtol=error, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "starcoder2"])
def test_a_family_of_which_llama_cpp_would_leave_out_a_part_is_refused(family: str, tmp_path: Path) -> None:
    backbone = tiny.family_backbone(family)
    with pytest.raises(errors.BackboneError, match=rf"received a {family} model.*--as lora"):
        servable(backbone).export(tmp_path / "out", backbone, form="gguf-lora")
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_error_names_the_extra(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ifedicl.backbone.gguf_lora.find_spec", lambda _name: None)
    with pytest.raises(errors.BackboneError, match=r"pip install 'ifedicl\[gguf\]'"):
        servable(backbone).export(tmp_path / "out", backbone, form="gguf-lora")
    assert not (tmp_path / "out").exists()


def _request(folder: Path) -> dict[str, object]:
    """The body of the request that the card shows."""
    return request_of((folder / "README.md").read_text())


def test_the_card_asks_the_server_for_one_of_the_label_words(backbone: Backbone, llama_folder: Path, tmp_path: Path) -> None:
    quoted = tiny.TASK.model_copy(update={"template": "It's: {text}\nMood:"})
    servable(backbone, task=quoted, source=str(llama_folder)).save(tmp_path / "adapter")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--as", "gguf-lora"])
    assert done.exit_code == 0, done.output
    assert "a LoRA for llama.cpp" in " ".join(done.output.split())
    words = [word for (word,) in Encoder(backbone, quoted).tree.words]
    assert _request(tmp_path / "out") == {
        "prompt": "It's: a text\nMood:",
        "temperature": 0,
        "n_predict": 1,
        "logit_bias": [[word, 100.0] for word in words],
    }
    assert f"tokens {dict(zip(quoted.labels, words, strict=True))}" in (tmp_path / "out" / "README.md").read_text()


def test_words_of_several_tokens_are_asked_for_by_a_grammar(backbone: Backbone, tmp_path: Path) -> None:
    quoted = tiny.TASK.model_copy(update={"label_words": ('go"od', "b\\ad")})
    replace(servable(backbone), task=quoted, readout=None).export(tmp_path / "out", backbone, form="gguf-lora")
    asked = _request(tmp_path / "out")
    assert asked["grammar"] == r'root ::= " go\"od" | " b\\ad"'
    assert "its choice can differ" in (tmp_path / "out" / "README.md").read_text()


def test_of_answers_of_text_the_request_ends_at_the_line(backbone: Backbone, tmp_path: Path) -> None:
    task = ExtractTask(name="order", template="Order: {text}\nFields:", most_answer_tokens=16)
    adapter = servable(backbone, task=tiny.TASK)
    replace(adapter, task=task, readout=None).export(tmp_path / "out", backbone, form="gguf-lora")
    assert _request(tmp_path / "out") == {"prompt": "Order: a text\nFields:", "temperature": 0, "n_predict": 17, "stop": ["\n"]}
