"""Models of known shapes with random weights, and a tokenizer of made-up words: what `gpu.py` runs on. No download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from _pairs import TASK, sentences
from ifedicl.backbone.families import writes_of
from ifedicl.backbone.load import Backbone, wrap
from ifedicl.settings import ModelSettings

TINY = "tiny"
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8_192,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8_192,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8_192,
        "tie_word_embeddings": True,
    },
    TINY: {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
}
"""Sizes as the models' authors publish them; dropout, rotary bases and the like keep the families' defaults."""


def backbone_of(shape: str, device: torch.device, dtype: torch.dtype, *, layers: int | None = None) -> Backbone:
    """A random model of a shape, the same on every device; ``layers`` makes it shallower."""
    sizes = dict(SHAPES[shape])
    if layers is not None:
        sizes["num_hidden_layers"] = layers
    config = AutoConfig.for_model(**sizes)
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    settings = ModelSettings(source=shape, device="cpu" if device.type == "cpu" else "cuda")
    return wrap(model, tokenizer(), writes_of(config.model_type, None), settings, fingerprint=shape)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the made-up sentences' words: about one token a word."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPES[TINY]["vocab_size"], special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    words = [TASK.prompt(example.text) for example in sentences(200)]
    raw.train_from_iterator([*words, *[f" {word}" for word in TASK.label_words] * 200], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")  # noqa: S106 - a token of text
