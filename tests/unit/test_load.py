"""A model is loaded whole, safely and as what it is, or refused in words."""

from __future__ import annotations

import json
import shutil
import struct
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import psutil
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ifedicl import files
from ifedicl.backbone import fingerprint, preflight
from ifedicl.backbone import gguf as gguf_module
from ifedicl.backbone.fingerprint import fingerprint_of, stored_tensors
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.errors import (
    BackboneError,
    DownloadError,
    NotEnoughMemoryError,
    StorageError,
    UnknownFamilyError,
    UnsafeWeightsError,
)
from ifedicl.settings import ModelSettings
from tests import tiny

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama to do harm to."""
    return shutil.copytree(llama_folder, tmp_path / "model")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def reconfigured(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


# Which model is this?


def sharded(folder: Path, shards: int) -> Path:
    """The same tensors in several files, as large models come."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors, reverse=True)[number::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


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


def _other_shape(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.copy()


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
    monkeypatch.setattr("builtins.input", lambda *args: "y")  # whoever asks is told yes
    if model_type == "llama":
        assert tiny.load(model).model.__class__.__name__ == "LlamaForCausalLM"
    else:
        with pytest.raises(BackboneError, match="code of their own are never run"):
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
    assert f"needs about {int(numbers * 4 * 1.15) // 1024:,} MiB in float32, and 30 MiB are free on cpu" in str(caught.value)
    assert "a smaller model" in str(caught.value)
    with pytest.raises(NotEnoughMemoryError, match=f"about {int(numbers * 2 * 1.15) // 1024:,} MiB in bfloat16"):
        tiny.load(model, dtype="bfloat16")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free(int(numbers * 4 * 1.15) + 1))
    with pytest.raises(AssertionError, match="weights were loaded"):
        tiny.load(model)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused_with_a_remedy(model: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackboneError, match=rf"model\.device '{device}'.*use 'cpu' or 'auto'"):
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


# The hub


def answer() -> Any:
    """As much of a response as the hub's errors look at, whichever library it came from."""
    return SimpleNamespace(headers={}, request=None, status_code=500)


MISSING = {
    "no such id": RepositoryNotFoundError("404", response=answer()),
    "gated": GatedRepoError("403", response=answer()),
    "no such revision": RevisionNotFoundError("404", response=answer()),
    "no id at all": HFValidationError("bad id"),
}
CUT = {
    "no network": LocalEntryNotFoundError("offline"),
    "server": HfHubHTTPError("503", response=answer()),
    "interrupted": ConnectionResetError("connection reset by peer"),
    "timeout": TimeoutError("timed out"),
    "disk": OSError(28, "No space left on device"),
    "another library": RuntimeError("peer closed connection without sending complete message body"),
}


def raising(error: Exception) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize("error", MISSING.values(), ids=MISSING)
def test_a_model_that_the_hub_does_not_have_is_named_with_a_remedy(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
    with pytest.raises(BackboneError, match=r"'owner/nothing' \(revision v9\).*Check the spelling.*hf auth login"):
        load_backbone(ModelSettings(source="owner/nothing", revision="v9", device="cpu"))


@pytest.mark.parametrize("error", CUT.values(), ids=CUT)
def test_a_download_that_is_cut_short_can_be_taken_up_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
    with pytest.raises(DownloadError, match=r"owner/model: the download failed.*run the same command again"):
        load_backbone(ModelSettings(source="owner/model", device="cpu"))


def test_a_folder_that_does_not_exist_is_not_mistaken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no such folder"):
        load_backbone(ModelSettings(source=str(tmp_path / "nowhere"), device="cpu"))


def test_no_code_and_no_pickle_is_ever_asked_of_the_hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(source: str, **options: Any) -> str:
        asked.update(options, source=source)
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load_backbone(ModelSettings(source="owner/model", revision="v1", device="cpu", dtype="float32"))
    assert (asked["source"], asked["revision"], loaded.source) == ("owner/model", "v1", "owner/model")
    offered = [
        "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja", "tokenizer.model", "generation_config.json",
        "pytorch_model.bin", "modeling_own.py", "model.pt", "training_args.bin", "model.onnx", "tokenizer.pkl",
    ]  # fmt: skip
    taken = list(huggingface_hub.utils.filter_repo_objects(offered, allow_patterns=asked["allow_patterns"]))
    assert taken[:10] == offered[:10]
    assert [name for name in taken[10:] if not name.startswith("tokenizer")] == []


# GGUF


def write_gguf(folder: Path, file: Path, without: str = "") -> Path:
    """The tiny Llama of ``folder`` as llama.cpp would store it, in float32; ``without`` one of its tensors."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["q_proj"])
    writer.add_head_count_kv(heads["k_proj"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    words = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3] + [1] * (len(words) - 1))
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(0)
    writer.add_add_bos_token(False)
    for name, tensor in load_file(folder / WEIGHTS).items():
        part = name.split(".")[-2]
        if part in heads:  # llama.cpp interleaves the two halves of each head's rotation
            halves = tensor.reshape(heads[part], 2, len(tensor) // heads[part] // 2, -1)
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        if name != without:
            writer.add_tensor(_gguf_name(name), np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _gguf_name(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k",
        "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    stem = name.removesuffix(".weight")
    return f"{whole[stem]}.weight" if stem in whole else f"blk.{stem.split('.')[2]}.{parts[stem.split('.')[-1]]}.weight"


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
    folder = gguf_module.converted(gguf_file)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", raising(AssertionError("converted again")))
    assert gguf_module.converted(gguf_file) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert WEIGHTS in before


def test_a_conversion_that_is_interrupted_leaves_nothing_that_would_be_taken_for_a_model(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", lambda **place: Interrupting())
        with pytest.raises(KeyboardInterrupt):
            gguf_module.converted(gguf_file, tmp_path / "own")
    assert list((tmp_path / "own" / "gguf").iterdir()) == []
    assert (gguf_module.converted(gguf_file, tmp_path / "own") / "tokenizer.json").is_file()


class Interrupting:
    def save_pretrained(self, folder: Path) -> None:
        raise KeyboardInterrupt


def test_a_gguf_file_that_lacks_a_tensor_is_refused_and_not_filled_with_random_numbers(
    llama_folder: Path, tmp_path: Path
) -> None:
    file = write_gguf(llama_folder, tmp_path / "holed.gguf", without="model.layers.1.mlp.down_proj.weight")
    with pytest.raises(
        BackboneError, match=r"holed\.gguf lacks 1 of the model's tensors, model\.layers\.1\.mlp\.down_proj\.weight"
    ):
        gguf_module.converted(file, tmp_path / "own")
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
        gguf_module.converted(gguf_file, tmp_path / "cache")


def test_a_second_copy_of_the_weights_counts_for_nothing(model: Path) -> None:
    before = fingerprint_of(model)
    (model / "consolidated.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    assert fingerprint_of(model) == before
    assert {tensor.file.name for tensor in stored_tensors(model)} == {"model.safetensors"}


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "llama3"])
def test_sequences_stay_where_positions_mean_the_same_to_all_rows(rope_type: str) -> None:
    from types import SimpleNamespace

    from ifedicl.backbone.load import _window

    rope = {"rope_type": rope_type, "original_max_position_embeddings": 64}
    config = SimpleNamespace(max_position_embeddings=256, rope_parameters=rope)
    assert _window(config) == (256 if rope_type == "llama3" else 64)
