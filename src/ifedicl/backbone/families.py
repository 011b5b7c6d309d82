"""The modules with which each model family writes attention and MLP output to the residual stream.

A *write* is what is added to the residual stream, so the module named here is the last one before the addition: the output
projection, or the norm behind it if the family normalises after the projection (Gemma 2 and 3, OLMo 2). Its output is a plain
tensor in all families. A new family is one line, checked by ``tests/unit/test_families.py`` against a slow oracle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ifedicl.errors import BackboneError, UnknownFamilyError


@dataclass(frozen=True)
class Writes:
    """Paths of the modules whose output is a write.

    Attributes:
        layers: path of the list of layers, from the model *without* its LM head.
        attention, mlp: paths within a layer of the modules that give the two writes.
        branches: whether attention depends on the given mask and positions alone, so that a row may branch
            (``backbone/tree_attention.py``). False for a family that a user names, since nobody has checked it.
    """

    layers: str
    attention: str
    mlp: str
    branches: bool = False


_LLAMA = Writes("layers", "self_attn.o_proj", "mlp.down_proj", branches=True)
_POST_NORM = Writes("layers", "post_attention_layernorm", "post_feedforward_layernorm", branches=True)

FAMILIES: Mapping[str, Writes] = {
    "llama": _LLAMA,  # SmolLM, TinyLlama and Llama 1 to 3
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _POST_NORM,
    "gemma3_text": _POST_NORM,
    # with a vision tower
    "gemma3": Writes("language_model.layers", _POST_NORM.attention, _POST_NORM.mlp, branches=True),
    "olmo2": _POST_NORM,
    "phi3": _LLAMA,
    "starcoder2": Writes("layers", "self_attn.o_proj", "mlp.c_proj", branches=True),
    "phi": Writes("layers", "self_attn.dense", "mlp.fc2", branches=True),
    "opt": Writes("decoder.layers", "self_attn.out_proj", "fc2", branches=True),
    "gpt2": Writes("h", "attn.c_proj", "mlp.c_proj", branches=True),
    "gptj": Writes("h", "attn.out_proj", "mlp.fc_out", branches=True),
    "gpt_neox": Writes("layers", "attention.dense", "mlp.dense_4h_to_h", branches=True),  # Pythia
    # Both add the residual inside their modules, so the projection is the last module whose output is the write alone.
    "bloom": Writes("h", "self_attention.dense", "mlp.dense_4h_to_h"),  # takes no positions: ALiBi
    "falcon": Writes("h", "self_attention.dense", "mlp.dense_4h_to_h", branches=True),
}
"""By ``config.model_type``."""


def writes_of(model_type: str, override: Mapping[str, str] | None) -> Writes:
    """The user's override, or the table's entry.

    Raises:
        UnknownFamilyError: there is neither.
        BackboneError: the override lacks a path or has an unknown one.
    """
    if override is not None:
        if set(override) != {"layers", "attention", "mlp"}:
            raise BackboneError(
                f"model.writes: received {', '.join(sorted(override))}; allowed: exactly layers, attention and mlp"
            )
        return Writes(override["layers"], override["attention"], override["mlp"])
    if model_type not in FAMILIES:
        raise UnknownFamilyError(
            f"model.source: model type {model_type!r} is not in the table of writes; allowed: {', '.join(sorted(FAMILIES))}. "
            "For another one, name the modules whose outputs are added to the residual stream in the config: "
            '[model] writes = {layers = "layers", attention = "self_attn.o_proj", mlp = "mlp.down_proj"} '
            "(paths from the model without its LM head), and check them with: ifedicl inspect config.toml"
        )
    return FAMILIES[model_type]


def layer_modules(body: nn.Module, writes: Writes) -> tuple[nn.Module, ...]:
    """The ``L`` layers.

    Raises:
        BackboneError: the model has no module at the path.
    """
    return tuple(_at(body, writes.layers, "the model").children())


def write_modules(body: nn.Module, writes: Writes) -> tuple[tuple[nn.Module, nn.Module], ...]:
    """The ``L`` pairs of (attention, MLP) modules whose outputs are the writes.

    Raises:
        BackboneError: a layer has no module at the path.
    """
    return tuple(
        (_at(layer, writes.attention, f"layer {number}"), _at(layer, writes.mlp, f"layer {number}"))
        for number, layer in enumerate(layer_modules(body, writes))
    )


def _at(module: nn.Module, path: str, where: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        children = ", ".join(name for name, _ in module.named_children())
        raise BackboneError(f"model.writes: {where} has no module {path!r}; it has {children}. Correct the path") from None
