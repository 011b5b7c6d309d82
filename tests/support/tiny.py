"""Tiny random models and made-up text: what unit tests run on."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ifedicl import seeds
from ifedicl.adapter import Adapter
from ifedicl.backbone.families import writes_of
from ifedicl.backbone.load import Backbone, load_backbone, wrap
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.kinds.classify import Example, Task
from ifedicl.settings import Method, ModelSettings, validated

VOCABULARY = 320
TASK = Task(name="mood", labels=("good", "bad"), template="Text: {text}\nMood:")
MANY_TOKENS = Task(name="place", labels=("at home", "at home alone", "out"), template="Text: {text}\nPlace:", separator=" ")
SENTENCES = (
    "the soup was warm and kind",
    "a cold room with a loud fan",
    "we laughed all the way home",
    "the parcel came broken and late",
    "sunny again, what a day!",
    "nobody answered the phone for an hour",
    "fresh bread on the table",
    "my shoes are wet",
)


def method(**sections: Any) -> Method:
    """Settings of a short run; sections override."""
    base: dict[str, Any] = {
        "holdout": {"selection": 0.25},
        "calibration": {"batch_size": 2, "local_steps": 2, "learning_rate": 0.05},
        "rounds": {"rounds": 2},
    }
    plain: dict[str, Any] = {name: sections.pop(name) for name in ("seed", "weighting") if name in sections}
    return validated(Method, {**{k: {**base.get(k, {}), **sections.get(k, {})} for k in {*base, *sections}}, **plain}, "t")


def examples(count: int, *, task: Task = TASK, seed: int = 0) -> tuple[Example, ...]:
    """``count`` different labelled sentences; every label occurs."""
    draw = seeds.generator(seed, "examples")
    return tuple(
        Example(f"{SENTENCES[int(draw.integers(len(SENTENCES)))]} {number}", task.labels[number % len(task.labels)])
        for number in range(count)
    )


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Labelled text as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(count: int, *, seed: int) -> list[dict[str, str]]:
    """:func:`examples` as a file has them."""
    return [{"text": example.text, "label": example.label} for example in examples(count, seed=seed)]


def write_config(
    path: Path,
    model: Path,
    clients: Sequence[str],
    sections: str,
    *,
    test: str | None = None,
    seed: int = 0,
    weighting: str = "uniform",
) -> Path:
    """A config of :data:`TASK` on a tiny model, with a file ``NAME.jsonl`` for each client.

    Args:
        path: of the file.
        model: its folder.
        clients: names.
        sections: the rest of it, as TOML.
        test: a file of test text.
        seed: of the run.
        weighting: of the clients.
    """
    files = ", ".join(f'{name} = "{name}.jsonl"' for name in clients)
    lines = [
        f'seed = {seed}\nweighting = "{weighting}"',
        f'[task]\nname = "mood"\nlabels = ["good", "bad"]\ntemplate = {json.dumps(TASK.template)}',
        f'[model]\nsource = {json.dumps(str(model))}\ndevice = "cpu"\ndtype = "float32"',
        f"[data]\nclients = {{ {files} }}",
        *([] if test is None else [f"test = {json.dumps(test)}"]),
        textwrap.dedent(sections),
    ]
    path.write_text("\n".join(lines))
    return path


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on our sentences."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [*SENTENCES, "Text: Mood: Place:", " good bad at home alone out"] * 4
    words += [" good bad"] * 60  # one token each; other words are several
    raw.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")


def save_model(folder: Path, model_type: str = "llama", **overrides: Any) -> Path:
    """Write a random model of a family, with our tokenizer, as a checkpoint folder."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(model_type, **overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases start at 1 and 0, which would hide mistakes
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def config(model_type: str, **overrides: Any) -> Any:
    """A configuration of a few thousand parameters; names differ by family."""
    size: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if model_type == "falcon":
        del size["num_key_value_heads"], size["head_dim"]
    if model_type in {"gptj", "gpt_neox"}:
        size["rotary_pct" if model_type == "gpt_neox" else "rotary_dim"] = 1.0 if model_type == "gpt_neox" else 4
    if model_type in {"gpt2", "gptj"}:
        renamed = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        size = {renamed.get(key, key): value for key, value in size.items()}
        size |= {"n_positions": 128, "n_inner": 48}
        for name in ("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings"):
            size.pop(name, None)
    if model_type == "bloom":
        size |= {"n_layer": 3, "n_head": 4}
        for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"):
            size.pop(name, None)
    if model_type == "gemma3":  # the text model stands beside a vision tower
        sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
        text = {**size, "sliding_window": 6, **overrides}
        tower = {**sight, "patch_size": 4}
        return AutoConfig.for_model("gemma3", text_config=text, vision_config=tower, mm_tokens_per_image=4)
    if model_type == "opt":
        size |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    return AutoConfig.for_model(model_type, **{**size, **overrides})


def load(folder: Path, **settings: Any) -> Backbone:
    """The model in ``folder`` on the CPU."""
    return load_backbone(ModelSettings(source=str(folder), **{"device": "cpu", "dtype": "float32", **settings}))


def drawn_adapter(backbone: Backbone, task: Task = TASK, *, rank: int = 0, seed: int = 3, source: str = "tiny") -> Adapter:
    """An adapter of random numbers, large enough that they show; it names ``source`` as its model."""
    draws, shape = np.random.default_rng(seed), (backbone.layers, 2)
    scales = np.stack([draws.normal(size=shape) * 0.3, 0.5 + draws.random(shape)], axis=-1).astype(np.float32)
    vectors = draws.normal(size=(*shape, backbone.width)).astype(np.float32)
    basis = core = None
    if rank:
        rows = np.linalg.qr(draws.normal(size=(*shape, backbone.width, rank)))[0].swapaxes(2, 3).astype(np.float32)
        core = (draws.normal(size=(*shape, rank, rank)) * 0.4).astype(np.float32)
        basis = np.ascontiguousarray(rows)
    model = ModelSettings(source=source, dtype="float32", device="cpu")
    return Adapter(task, Context(vectors, basis), Coefficients(scales, core), model, backbone.fingerprint)


FAMILY_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-with-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral-sliding": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 6, "final_logit_softcapping": 2.0}),
    "gemma3_text": ("gemma3_text", {"sliding_window": 6}),
    "gemma3-with-vision": ("gemma3", {}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {}),
    "starcoder2": ("starcoder2", {}),
    "phi": ("phi", {}),
    "opt": ("opt", {}),
    "opt-post-norm": ("opt", {"do_layer_norm_before": False}),
    "gpt2": ("gpt2", {}),
    "gptj": ("gptj", {}),
    "gpt_neox-parallel": ("gpt_neox", {"use_parallel_residual": True}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "bloom": ("bloom", {}),
    "bloom-post-norm-residual": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "falcon-7b": ("falcon", {"parallel_attn": True, "new_decoder_architecture": False}),
    "falcon-sequential": ("falcon", {"parallel_attn": False, "new_decoder_architecture": False, "bias": True}),
    "falcon-rw-alibi": (
        "falcon",
        {"parallel_attn": False, "new_decoder_architecture": False, "alibi": True, "multi_query": False},
    ),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
}
"""Every family of the table, and the variants in which the residual stream runs differently."""


SLIDING = ("mistral-sliding", "gemma2", "gemma3_text", "gemma3-with-vision")
"""Those of ``FAMILY_CASES`` with a window, of 6 tokens."""


@cache
def family_backbone(case: str, *, window: int = 6) -> Backbone:
    """One of ``FAMILY_CASES`` with random weights large enough that a mistake shows. Shared: leave it as it was.

    Args:
        case: its name.
        window: tokens of the sliding window, where it has one.
    """
    model_type, overrides = FAMILY_CASES[case]
    if case in SLIDING:
        overrides = {**overrides, "sliding_window": window}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config(model_type, **overrides), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            elif "embed" not in name and "wte" not in name:
                parameter.mul_(6.0)
    settings = ModelSettings(source=case, device="cpu")
    return wrap(model, tokenizer(), writes_of(model.config.model_type, None), settings, fingerprint=case)
