"""Checkpoint folders that are changed, split or stored as GGUF."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The weights of a checkpoint after ``change``."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def reconfigured(folder: Path, **values: Any) -> None:
    """The configuration of a checkpoint with other values."""
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


def _other_shape(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.copy()


def raising(error: Exception) -> Callable[..., Any]:
    """A stand-in for a function that fails."""

    def function(*args: Any, **kwargs: Any) -> Any:
        raise error

    return function


# GGUF


def write_gguf(folder: Path, file: Path, without: str = "", tensors_each: int = 0) -> Path:
    """The tiny Llama of ``folder`` as llama.cpp would store it, in float32; ``without`` one of its tensors.

    ``tensors_each``: most tensors in a part; the parts are named as llama.cpp names them. 0: one file.
    """
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(file, "llama", split_max_tensors=tensors_each)
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
