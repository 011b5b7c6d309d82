"""A model is loaded whole, safely and as what it is, or refused in words."""

from __future__ import annotations

import json
import struct
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from ifedicl.backbone import preflight
from ifedicl.backbone.load import Backbone
from ifedicl.bench.plan import load_plan
from ifedicl.errors import (
    BackboneError,
    NotEnoughMemoryError,
    UnknownFamilyError,
    UnsafeWeightsError,
)
from tests.support import tiny
from tests.support.checkpoints import WEIGHTS, _other_shape, reconfigured, rewritten, sharded

# What is refused


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_a_folder_with_pickled_weights_only_is_refused(model: Path, name: str) -> None:
    (model / WEIGHTS).rename(model / name)
    with pytest.raises(UnsafeWeightsError, match=rf"only pickled weights \({name}\).*safetensors"):
        tiny.load(model)


def test_a_pickle_beside_the_safetensors_is_not_read(model: Path, backbone: Backbone, tmp_path: Path) -> None:
    payload = f"cos\nsystem\n(S'touch {tmp_path / 'ran'}'\ntR.".encode()
    (model / "pytorch_model.bin").write_bytes(payload)
    assert tiny.load(model).fingerprint == backbone.fingerprint
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_is_refused(model: Path) -> None:
    (model / WEIGHTS).unlink()
    with pytest.raises(BackboneError, match="holds no weights"):
        tiny.load(model)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="holds no weights"):
        tiny.load(tmp_path)


def test_weights_cut_short_anywhere_are_refused_before_they_are_loaded(model: Path) -> None:
    whole = (model / WEIGHTS).read_bytes()
    (header,) = struct.unpack_from("<Q", whole)
    for length in (0, 5, 8, 60, 8 + header - 1, 8 + header, len(whole) // 2, len(whole) - 1):
        (model / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(BackboneError, match=r"(not a whole safetensors file|cut short).*download the model again"):
            tiny.load(model)


def framed(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**62) + b"{}",
        framed(b"not JSON"),
        *(
            pytest.param(framed(text))
            for text in (
                b"[1]",
                b'{"a":1}',
                b'{"a":{"dtype":"F32","shape":[1]}}',
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-40,-36]}}',
            )
        ),
    ],
    ids=["huge header", "no JSON", "list", "number", "no offsets", "negative offsets"],
)
def test_a_header_that_is_not_one_is_refused(model: Path, data: bytes) -> None:
    (model / WEIGHTS).write_bytes(data)
    with pytest.raises(BackboneError, match="download the model again"):
        tiny.load(model)


def test_weights_with_a_tensor_missing_are_refused(model: Path) -> None:
    rewritten(model, lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(BackboneError, match="down_proj"):
        tiny.load(model)


def test_weights_of_another_shape_are_refused(model: Path) -> None:
    rewritten(model, _other_shape)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        tiny.load(model)


def test_a_missing_shard_is_refused(model: Path) -> None:
    sharded(model, 3)
    (model / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(BackboneError):
        tiny.load(model)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type":', '{"model_type": "no-such-model"}'])
def test_a_configuration_that_cannot_be_used_is_refused(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(BackboneError, match=r"config\.json cannot be used"):
        tiny.load(model)


def test_a_missing_configuration_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"config\.json cannot be used"):
        tiny.load(model)


def test_a_configuration_with_a_value_of_a_wrong_type_is_refused(model: Path) -> None:
    reconfigured(model, hidden_size="wide")
    with pytest.raises(BackboneError, match=r"config\.json"):
        tiny.load(model)


@pytest.mark.parametrize("change", ["torn", "missing"])
def test_a_tokenizer_that_cannot_be_read_is_refused(model: Path, change: str) -> None:
    file = model / "tokenizer.json"
    text = file.read_text()
    file.unlink()
    if change == "torn":
        file.write_text(text[: len(text) // 2])
    with pytest.raises(BackboneError, match="tokenizer"):
        tiny.load(model)


def test_an_architecture_that_is_not_in_the_table_is_refused_with_those_that_are(model: Path) -> None:
    reconfigured(model, model_type="bert", architectures=["BertModel"])
    with pytest.raises(UnknownFamilyError, match=r"'bert'.*llama.*ifedicl inspect config\.toml"):
        tiny.load(model)


@pytest.mark.parametrize("model_type", ["llama", "own-model"])
def test_code_in_a_checkpoint_is_never_run(
    model: Path, tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    (model / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass C: pass\nclass M: pass\nclass T: pass\n")
    reconfigured(model, model_type=model_type, auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["own.T", "own.T"]}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr("builtins.input", lambda *args: "y")  # each prompt gets a yes
    if model_type == "llama":
        assert tiny.load(model).model.__class__.__name__ == "LlamaForCausalLM"
    else:
        with pytest.raises(BackboneError, match="Remote code is never run"):
            tiny.load(model)
    assert not mark.exists()


# Memory and devices


def test_too_little_memory_is_found_before_anything_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were loaded")

    free = namedtuple("free", "available")
    numbers = sum(tensor.size for tensor in load_file(model / WEIGHTS).values())
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(preflight, "_MIB", 1 << 10)  # the tiny model has none
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free(30 << 10))
    with pytest.raises(NotEnoughMemoryError) as caught:
        tiny.load(model)
    assert f"needs about {int(numbers * 4 * 1.15) // 1024:,} MiB in float32; 30 MiB are free on cpu" in str(caught.value)
    assert "a smaller model" in str(caught.value)
    with pytest.raises(NotEnoughMemoryError, match=f"about {int(numbers * 2 * 1.15) // 1024:,} MiB in bfloat16"):
        tiny.load(model, dtype="bfloat16")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free(int(numbers * 4 * 1.15) + 1))
    with pytest.raises(BackboneError, match="weights were loaded"):
        tiny.load(model)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused_with_a_remedy(model: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackboneError, match=rf"model\.device: received '{device}'.*allowed: 'cpu' or 'auto'"):
        tiny.load(model, device=device)


def test_the_device_is_the_cpu_where_there_is_no_gpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tiny.load(model, device="auto").device == torch.device("cpu")


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_the_dtype_is_bfloat16_only_where_the_processor_has_units_for_it(
    model: Path, units: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    loaded = tiny.load(model, dtype="auto")
    assert loaded.model.dtype == expected
    assert loaded.dtype == str(expected).removeprefix("torch.")


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
    assert (backbone.layers, backbone.width, backbone.context_window) == (3, 32, 128)


def test_the_window_may_be_made_smaller_but_not_larger(model: Path) -> None:
    assert tiny.load(model, max_prompt_tokens=40).context_window == 40
    assert tiny.load(model, max_prompt_tokens=4_000).context_window == 128


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "llama3"])
def test_sequences_stay_where_positions_mean_the_same_to_all_rows(rope_type: str) -> None:

    from ifedicl.backbone.load import _window

    rope = {"rope_type": rope_type, "original_max_position_embeddings": 64}
    config = SimpleNamespace(max_position_embeddings=256, rope_parameters=rope)
    assert _window(config) == (256 if rope_type == "llama3" else 64)


@pytest.mark.parametrize("plan", ["cpu", "dev"])
def test_the_plans_for_processors_ask_for_no_dtype_that_may_be_slow(plan: str) -> None:
    assert {model.dtype for model in load_plan(plan).models.values()} == {"auto"}


@pytest.mark.parametrize(("units", "warned"), [({}, True), ({"avx512_bf16": True}, False)])
def test_a_dtype_for_which_the_processor_has_no_units_gets_a_warning_and_auto_avoids_it(
    units: dict[str, bool], warned: bool, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert tiny.load(model, dtype="bfloat16").dtype == "bfloat16"
    assert ('Use "auto" or "float32"' in caplog.text) == warned
    caplog.clear()
    assert tiny.load(model, dtype="auto").dtype == ("float32" if warned else "bfloat16")
    assert tiny.load(model, dtype="float32").dtype == "float32"
    assert caplog.text == ""
