"""A slow second opinion: decoder layers re-run by hand, with the writes edited where they join the residual stream.

Written from each family's ``modeling_*.py``, block by block. It shares nothing with ``ifedicl.backbone``: it uses no hook, no
table of paths, and no output projection by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ifedicl.backbone.load import Backbone

ATTENTION, MLP = 0, 1
Edit: TypeAlias = Callable[[int, int, Tensor], Tensor]
"""(layer, write, ``(B, T, d)``) to what is added to the residual stream in its place."""
_Change: TypeAlias = Callable[[int, Tensor], Tensor]
_Plan: TypeAlias = Callable[[Any, Tensor, dict[str, Any], _Change], Tensor]


def _first(output: Any) -> Tensor:
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _call(attention: nn.Module, x: Tensor, rest: dict[str, Any]) -> Tensor:
    """Give an attention block those of its layer's arguments that it knows."""
    parameters = inspect.signature(type(attention).forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = {name: value for name, value in rest.items() if takes_all or name in parameters}
    return _first(attention(x, **known))


def _llama(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    x = x + change(ATTENTION, _call(layer.self_attn, layer.input_layernorm(x), rest))
    return x + change(MLP, layer.mlp(layer.post_attention_layernorm(x)))


def _sandwich(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    x = x + change(ATTENTION, layer.post_attention_layernorm(_call(layer.self_attn, layer.input_layernorm(x), rest)))
    return x + change(MLP, layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x))))


def _olmo2(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    x = x + change(ATTENTION, layer.post_attention_layernorm(_call(layer.self_attn, x, rest)))
    return x + change(MLP, layer.post_feedforward_layernorm(layer.mlp(x)))


def _phi(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    normed = layer.input_layernorm(x)
    return x + change(ATTENTION, _call(layer.self_attn, normed, rest)) + change(MLP, layer.mlp(normed))


def _opt(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    before = layer.do_layer_norm_before
    attention = _call(layer.self_attn, layer.self_attn_layer_norm(x) if before else x, rest)
    x = x + change(ATTENTION, attention)
    x = x if before else layer.self_attn_layer_norm(x)
    inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(x) if before else x))
    x = x + change(MLP, nn.functional.linear(inner, layer.fc2.weight, layer.fc2.bias))
    return x if before else layer.final_layer_norm(x)


def _gpt2(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    x = x + change(ATTENTION, _call(layer.attn, layer.ln_1(x), rest))
    return x + change(MLP, layer.mlp(layer.ln_2(x)))


def _gptj(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    normed = layer.ln_1(x)
    return x + change(ATTENTION, _call(layer.attn, normed, rest)) + change(MLP, layer.mlp(normed))


def _gpt_neox(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    attention = change(ATTENTION, _call(layer.attention, layer.input_layernorm(x), rest))
    at_mlp = x if layer.use_parallel_residual else x + attention
    return x + attention + change(MLP, layer.mlp(layer.post_attention_layernorm(at_mlp)))


def _bloom(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    normed = layer.input_layernorm(x)
    residual = normed if layer.apply_residual_connection_post_layernorm else x
    nothing = torch.zeros_like(x)  # the blocks add the residual that they are given
    x = residual + change(ATTENTION, _call(layer.self_attention, normed, {**rest, "residual": nothing}))
    normed = layer.post_attention_layernorm(x)
    residual = normed if layer.apply_residual_connection_post_layernorm else x
    return residual + change(MLP, layer.mlp(normed, nothing))


def _falcon(layer: Any, x: Tensor, rest: dict[str, Any], change: _Change) -> Tensor:
    config = layer.config
    two_norms = config.new_decoder_architecture and config.num_ln_in_parallel_attn == 2
    normed = layer.ln_attn(x) if two_norms else layer.input_layernorm(x)
    attention = change(ATTENTION, _call(layer.self_attention, normed, rest))
    if two_norms:
        at_mlp = layer.ln_mlp(x)
    elif config.parallel_attn:
        at_mlp = normed
    else:
        at_mlp = layer.post_attention_layernorm(x + attention)
    return x + attention + change(MLP, layer.mlp(at_mlp))


_PLANS: dict[str, _Plan] = {
    "LlamaDecoderLayer": _llama,
    "MistralDecoderLayer": _llama,
    "Qwen2DecoderLayer": _llama,
    "Qwen3DecoderLayer": _llama,
    "GemmaDecoderLayer": _llama,
    "Phi3DecoderLayer": _llama,
    "Starcoder2DecoderLayer": _llama,
    "Gemma2DecoderLayer": _sandwich,
    "Gemma3DecoderLayer": _sandwich,
    "Olmo2DecoderLayer": _olmo2,
    "PhiDecoderLayer": _phi,
    "OPTDecoderLayer": _opt,
    "GPT2Block": _gpt2,
    "GPTJBlock": _gptj,
    "GPTNeoXLayer": _gpt_neox,
    "BloomBlock": _bloom,
    "FalconDecoderLayer": _falcon,
}
_RETURNS_TUPLE = {"GPTJBlock", "BloomBlock", "FalconDecoderLayer"}


def layers_of(backbone: Backbone) -> list[Any]:
    """The decoder layers, found by the names of their classes."""
    return [module for module in backbone.model.modules() if type(module).__name__ in _PLANS]


@contextmanager
def edited(backbone: Backbone, edit: Edit) -> Iterator[None]:
    """Within the block, every decoder layer is the hand-written one, and ``edit`` is applied to each write."""
    layers = layers_of(backbone)
    for number, layer in enumerate(layers):
        layer.forward = _by_hand(layer, number, edit)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _by_hand(layer: Any, number: int, edit: Edit) -> Callable[..., Any]:
    kind = type(layer)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(kind.forward).bind(layer, *args, **kwargs).arguments
        rest = {name: value for name, value in bound.items() if name not in {"self", "hidden_states", "kwargs"}}
        rest |= bound.get("kwargs", {})
        output = _PLANS[kind.__name__](layer, bound["hidden_states"], rest, lambda write, y: edit(number, write, y))
        return (output, None) if kind.__name__ in _RETURNS_TUPLE else output

    return forward


def writes(backbone: Backbone, tokens: Tensor) -> Tensor:
    """``(L, 2, B, T, d)``: all writes of one forward pass."""
    seen: dict[tuple[int, int], Tensor] = {}

    def keep(layer: int, write: int, y: Tensor) -> Tensor:
        seen[layer, write] = y.detach().clone()
        return y

    with edited(backbone, keep), torch.no_grad():
        backbone.model.base_model(input_ids=tokens, use_cache=False)
    return torch.stack([torch.stack([seen[layer, write] for write in (ATTENTION, MLP)]) for layer in range(len(seen) // 2)])


def injection(vectors: Tensor, scales: Tensor, basis: Tensor, core: Tensor) -> Edit:
    """Eq. 5 and the subspace by plain arithmetic: ``(βI + UᵀΓU) y + λ·v``, every operation known to autograd.

    Args:
        vectors: ``(L, 2, d)``.
        scales: ``(L, 2, 2)``, (λ, β) last.
        basis: ``(L, 2, r, d)``.
        core: ``(L, 2, r, r)``.
    """

    def edit(layer: int, write: int, y: Tensor) -> Tensor:
        context_scale, activation_scale = scales[layer, write]
        within = basis[layer, write].T @ core[layer, write] @ basis[layer, write]  # (d, d)
        matrix = activation_scale * torch.eye(y.shape[-1]) + within
        edited: Tensor = y @ matrix.T + context_scale * vectors[layer, write]
        return edited

    return edit
