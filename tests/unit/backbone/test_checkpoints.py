"""Folders that hold something else than a model that can be loaded are named for what they are, with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from ifedicl import files
from ifedicl.backbone.fingerprint import fingerprint_of
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.source import fingerprint
from ifedicl.errors import BackboneError, NotEnoughMemoryError
from ifedicl.settings import ModelSettings
from tests.support import tiny
from tests.support.checkpoints import WEIGHTS, raising, reconfigured, rewritten, sharded


def _refused(folder: Path, *parts: str, **settings: Any) -> None:
    """Loading raises an error that names the source and holds all parts."""
    with pytest.raises(BackboneError) as caught:
        tiny.load(folder, **settings)
    for part in (str(folder), *parts):
        assert part in str(caught.value)


# Adapters


def _with_adapter(folder: Path, **values: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "ADALORA", **values}))
    save_file({"base_model.model.lm_head.lora_A.weight": np.ones((2, 32), np.float32)}, folder / "adapter_model.safetensors")


def test_an_adapter_beside_the_weights_is_refused_by_load_and_fingerprint(model: Path) -> None:
    _with_adapter(model)
    _refused(model, "ADALORA adapter (adapter_config.json) beside the weights", "allowed: one of them", "Merge it first")
    with pytest.raises(BackboneError, match="Merge it first"):
        fingerprint(ModelSettings(source=str(model)))


def test_a_folder_of_an_adapter_alone_is_named_with_its_base_and_nothing_else_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_adapter(tmp_path, base_model_name_or_path="some/base")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", raising(AssertionError("it was loaded")))
    _refused(
        tmp_path, "ADALORA adapter of 'some/base'", "no model; allowed: a whole model", "merge_and_unload()", "the base model"
    )


# Quantised weights


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"quant_method": "gptq", "bits": 3}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"load_in_8bit": True}, "bitsandbytes, load_in_8bit"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "of next year"}, "of next year"),
        ({"bits": 4}, "of an unknown kind"),
        ("yes", "of an unknown kind"),
    ],
)
def test_a_quantised_model_is_named_by_its_kind(model: Path, settings: Any, kind: str) -> None:
    reconfigured(model, quantization_config=settings)
    _refused(model, f"quantised weights ({kind}; see quantization_config in its config.json)", "allowed: float32", "GGUF")


def test_a_quantised_part_of_a_model_is_found(model: Path) -> None:
    reconfigured(model, text_config={"quantization_config": {"quant_method": "bitnet"}})
    _refused(model, "quantised weights (bitnet;")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.mlp.up_proj.qweight", np.ones((4, 4), np.int32)),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", np.ones((1, 1), np.float32)),
        ("model.layers.0.mlp.up_proj.SCB", np.ones(4, np.float32)),
        ("model.layers.0.mlp.up_proj.weight", np.ones((48, 32), np.int8)),
    ],
)
def test_quantised_tensors_are_found_without_a_word_in_the_configuration(model: Path, name: str, tensor: Any) -> None:
    rewritten(model, lambda tensors: tensors.update({name: tensor}))
    _refused(model, f"see the tensor {name}", "quantised weights")


def test_no_quantisation_may_be_written_down(model: Path, backbone: Backbone) -> None:
    reconfigured(model, quantization_config=None)
    assert tiny.load(model).fingerprint != backbone.fingerprint  # as before: the line is part of the configuration


# Names and places of weights


def test_weights_of_another_precision_beside_none_are_named(model: Path) -> None:
    (model / WEIGHTS).rename(model / "model.bf16.safetensors")
    _refused(model, "weights under other names (model.bf16.safetensors)", f"allowed: {WEIGHTS}", f"Rename it to {WEIGHTS}")


def test_several_weights_of_other_names_are_named(model: Path) -> None:
    for name in ("model.fp32.safetensors", "ema.safetensors"):
        (model / name).write_bytes((model / WEIGHTS).read_bytes())
    (model / WEIGHTS).unlink()
    _refused(model, "(ema.safetensors, model.fp32.safetensors)", "Keep the one that you want")


def test_parts_without_their_index_are_named(model: Path) -> None:
    sharded(model, 5)
    (model / "model.safetensors.index.json").unlink()
    _refused(model, "and 2 more", "Download the index, model.safetensors.index.json")


@pytest.mark.parametrize(
    "text",
    [
        '{"weight_map": {"lm_head.weight": "model-000',
        "[]",
        '{"metadata": {}, "weight_map": {}}',
        '{"metadata": {}, "weight_map": {"a": "../other/model.safetensors"}}',
        '{"metadata": {}, "weight_map": {"a": 3}}',
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
    ],
)
def test_an_index_that_is_none_is_named(model: Path, text: str) -> None:
    sharded(model, 2)
    (model / "model.safetensors.index.json").write_text(text)
    _refused(model, "model.safetensors.index.json is torn or no index; allowed: an object with metadata")


def test_a_missing_part_is_named(model: Path) -> None:
    sharded(model, 4)
    (model / "model-00003-of-00004.safetensors").unlink()
    _refused(model, "names model-00003-of-00004.safetensors, which is not there. Download")


def test_weights_of_another_precision_beside_the_usual_ones_are_not_read(model: Path, backbone: Backbone) -> None:
    (model / "model.fp16.safetensors").write_bytes(b"other")
    assert tiny.load(model).fingerprint == backbone.fingerprint


def test_a_configuration_cannot_name_other_weights(model: Path) -> None:
    tensors = {name: tensor * 2 for name, tensor in load_file(model / WEIGHTS).items()}
    save_file(tensors, model / "other.safetensors", metadata={"format": "pt"})
    reconfigured(model, transformers_weights="other.safetensors")
    _refused(model, "transformers_weights in its config.json names 'other.safetensors'", f"allowed: {WEIGHTS}")


def test_what_is_loaded_is_what_is_hashed_if_a_folder_holds_the_weights_twice(model: Path) -> None:
    whole = (model / WEIGHTS).read_bytes()
    sharded(model, 2)
    parts = fingerprint_of(model)
    (model / WEIGHTS).write_bytes(whole)
    assert fingerprint_of(model) == parts  # the same tensors
    rewritten(model, lambda tensors: tensors["lm_head.weight"].__imul__(2))
    assert fingerprint_of(model) != parts
    assert torch.equal(tiny.load(model).model.lm_head.weight, torch.tensor(load_file(model / WEIGHTS)["lm_head.weight"]))


def test_a_pointer_of_git_lfs_is_named(model: Path) -> None:
    (model / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    _refused(model, "model.safetensors is a pointer of Git LFS", "git lfs pull")


def test_a_folder_of_gguf_files_and_a_file_of_a_folder_are_named(model: Path, tmp_path: Path) -> None:
    _refused(model / WEIGHTS, "received the file", "Give its folder")
    assert tiny.load(model.rename(model.with_suffix(".gguf"))).layers == 3  # a folder that is called so
    model.with_suffix(".gguf").rename(model)
    (model / WEIGHTS).rename(model / "tiny.q8.gguf")
    _refused(model, "a folder of GGUF files (tiny.q8.gguf)", "Name the file itself")


def test_a_file_that_may_not_be_read_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = PermissionError(13, "Permission denied", str(model / "tokenizer.json"))
    monkeypatch.setattr(files, "sha256_of", raising(denied))
    _refused(model, "tokenizer.json cannot be read (Permission denied). Check")


# What the configuration asks for


@pytest.mark.parametrize(
    "kernel", ["flash_attention_3", "flash_attention_2", "kernels-community/flash-attn", "flex_attention", "x"]
)
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_the_configuration_asks_for_does_not_count(
    model: Path, backbone: Backbone, kernel: str, key: str
) -> None:
    reconfigured(model, **{key: kernel})
    loaded = tiny.load(model)
    assert loaded.model.config._attn_implementation == backbone.model.config._attn_implementation
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.hidden_states(tokens), backbone.hidden_states(tokens))


def test_a_package_that_loading_needs_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", raising(ImportError("\nthis needs mambapy\nmore")))
    _refused(model, "a package to load it that is not installed (this needs mambapy more). Install")


def test_memory_that_ends_while_a_model_is_loaded_is_an_error_with_a_remedy(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", raising(torch.OutOfMemoryError("no")))
    with pytest.raises(NotEnoughMemoryError, match="the memory of cpu is full"):
        tiny.load(model)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"num_attention_heads": 5}, "Correct that field"),
        ({"rms_norm_eps": "tiny"}, "Correct that field"),
        ({"model_type": "of-next-year"}, "Choose a model that transformers knows"),
        (
            {"intermediate_size": 64},
            "9 tensors have another shape than its config.json says, for instance model.layers.0.mlp.down_",
        ),
        ({"intermediate_size": 64}, "received (32, 48); allowed: (32, 64). Correct it, or download"),
        ({"hidden_act": "warp"}, "the model cannot be loaded (KeyError: 'warp')"),
        ({"num_hidden_layers": 5}, "lacks 18 tensors"),
        (
            {"num_hidden_layers": 2},
            "num_hidden_layers = 2, and its weights hold more, for instance model.layers.2.inp",
        ),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0, and a model has one or more. Correct that field"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1, and a model has one or more"),
    ],
)
def test_a_configuration_that_does_not_fit_its_weights_is_refused(model: Path, values: dict[str, Any], found: str) -> None:
    reconfigured(model, **values)
    _refused(model, found)


def test_a_tokenizer_with_code_of_its_own_is_named(model: Path) -> None:
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}')
    _refused(model, "needs code of its own (auto_map in its tokenizer_config.json)", "never run")


def test_a_gpu_beyond_the_last_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BackboneError, match="received 'cuda:2'; allowed: 'cpu', or up to 'cuda:1'"):
        tiny.load(model, device="cuda:2")


# Numbers and tokens


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(model: Path, number: float) -> None:
    rewritten(model, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 4), number))
    _refused(
        model, "1 tensors hold NaN or infinity in float32, for instance model.layers.1.mlp.up_proj.weight; allowed: finite"
    )


def test_weights_too_large_for_float16_are_refused_with_the_dtypes_that_hold_them(model: Path) -> None:
    rewritten(model, lambda tensors: tensors["lm_head.weight"].__setitem__((0, 0), 1e6))
    assert tiny.load(model).dtype == "float32"
    _refused(model, "in float16", "use model.dtype = 'bfloat16' or 'float32'", dtype="float16")


def test_large_weights_that_are_numbers_are_loaded(model: Path) -> None:
    rewritten(model, lambda tensors: tensors["lm_head.weight"].__setitem__(slice(None), 3e38))
    assert tiny.load(model).dtype == "float32"


def _added(model: Path, *contents: str, special: bool) -> None:
    """Tokens behind the last row of the embedding."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(list(contents), special_tokens=special)
    tokenizer.save_pretrained(model)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(model: Path) -> None:
    _added(model, "parsnip", "turnip", special=False)
    _refused(
        model, "2 tokens without a row in the embedding of 320 rows (for instance 'parsnip', 'turnip')", "resize_token_emb"
    )


def test_a_padding_token_without_a_row_does_no_harm(model: Path) -> None:
    _added(model, "[PAD]", special=True)
    loaded = tiny.load(model)
    assert loaded.tokenizer.convert_tokens_to_ids("[PAD]") == 320
    with pytest.raises(BackboneError, match="a prompt holds a token without a row"):
        loaded.hidden_states(torch.tensor([[5, 320]]))


def test_a_token_without_a_row_that_a_chat_turn_holds_is_refused(model: Path) -> None:
    _added(model, "<turn>", special=True)
    (model / "chat_template.jinja").write_text("<turn>{{ messages[0].content }}")
    _refused(model, "1 tokens without a row in the embedding of 320 rows (for instance '<turn>')")


@pytest.mark.parametrize(
    "names", [("model.layers.0.self_attn.rotary_emb.inv_freq",), ("vision.layers.9.weight", "mtp.5.weight"), ("model.layers",)]
)
def test_tensors_that_are_no_further_layers_do_no_harm(model: Path, backbone: Backbone, names: tuple[str, ...]) -> None:
    file = model / "model.safetensors"
    save_file({**load_file(file), **{name: np.zeros(2, np.float32) for name in names}}, file, {"format": "pt"})
    row = torch.tensor([[5, 17, 3]])
    torch.testing.assert_close(tiny.load(model).hidden_states(row), backbone.hidden_states(row))
