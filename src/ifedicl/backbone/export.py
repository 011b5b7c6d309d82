"""Folds an adapter into an ordinary checkpoint, which any server runs at the cost of the plain model.

The injection is affine in each write, so a projection can include it exactly. With λ a bias is needed, and a table says which
families store one there; without λ any projection will do. Behind a norm that follows the projection nothing can be folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from ifedicl.backbone.devices import DTYPES
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.quiet import quiet_transformers
from ifedicl.core.coefficients import ACTIVATION, CONTEXT, Coefficients
from ifedicl.core.injection import fold
from ifedicl.core.subspace import Context
from ifedicl.errors import BackboneError


def _as_llama(config: Any) -> Any:
    """The configuration of a Llama with the same computation; a Llama can store biases.

    Raises:
        BackboneError: some layer has a sliding window, which a Llama does not have.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ()
    slides = "sliding_attention" in kinds or (not kinds and window is not None)
    if slides and window is not None and window < config.max_position_embeddings:
        raise BackboneError(
            f"export: a {config.model_type} with a sliding window of {window} tokens cannot be stored as a Llama, and a "
            f"{config.model_type} stores no biases. Use the adapter with the model: Adapter.load, ifedicl classify"
        )
    names = set(LlamaConfig().to_dict()) - {"model_type", "architectures", "transformers_version", "attention_bias", "mlp_bias"}
    return LlamaConfig(**{name: value for name, value in config.to_dict().items() if name in names})


@dataclass(frozen=True)
class Storage:
    """How a family stores biases behind its writes.

    Attributes:
        switches: fields of its configuration that give all projections biases.
        converted: gives the configuration under which it is stored.
    """

    switches: Mapping[str, bool] = field(default_factory=dict)
    converted: Callable[[Any], Any] = lambda config: config


_LLAMA = {"attention_bias": True, "mlp_bias": True}
STORAGE: Mapping[str, Storage] = {
    "llama": Storage(_LLAMA),
    "mistral": Storage(_LLAMA, _as_llama),
    "qwen2": Storage(_LLAMA, _as_llama),
    "starcoder2": Storage({"use_bias": True}),
    "phi": Storage(),
    "opt": Storage({"enable_bias": True}),
    "gpt2": Storage(),
    "gpt_neox": Storage({"attention_bias": True}),
    "bloom": Storage(),
    "falcon": Storage({"bias": True}),
}
"""By ``config.model_type``. Other families have no place for a bias, or normalise after the projection."""


def export_folded(backbone: Backbone, context: Context, coefficients: Coefficients, folder: Path, *, dtype: str) -> None:
    """Write model and tokenizer with the injection folded in; ``backbone`` itself does not change.

    Args:
        backbone: the model.
        context: global vectors and basis.
        coefficients: the coefficients to fold in.
        folder: an existing folder; files of the same names are overwritten.
        dtype: of the stored weights: ``float32``, ``bfloat16`` or ``float16``. Folding is computed in float32.

    Raises:
        BackboneError: the family cannot store the folded weights.
    """
    config = stored_config(backbone, coefficients)
    with torch.device("meta"):  # no memory for weights that are replaced at once
        exported = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    load_folded(exported, folded_weights(backbone, context, coefficients), DTYPES[dtype])
    exported.tie_weights()
    exported.generation_config = backbone.model.generation_config
    with quiet_transformers():
        exported.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)


def stored_config(backbone: Backbone, coefficients: Coefficients) -> PreTrainedConfig:
    """A copy of the model's configuration that has a place for all that is folded in.

    Raises:
        BackboneError: λ needs biases, and the family cannot store them.
    """
    config = backbone.model.config
    storage: Storage | None = Storage()
    if coefficients.scales[..., CONTEXT].any() and (storage := STORAGE.get(config.model_type)) is None:
        raise BackboneError(
            f"export: received a {config.model_type} model, whose checkpoints cannot store the adapter's biases; allowed: "
            f"{', '.join(STORAGE)}, or an adapter without λ (preset servable). Use the adapter with the model: "
            "Adapter.load(folder).classify(texts), or ifedicl classify"
        )
    assert storage is not None
    stored: PreTrainedConfig = storage.converted(type(config).from_dict(config.to_dict()))
    for name, value in storage.switches.items():
        setattr(stored, name, value)
    if hasattr(stored, "quantization_config"):
        del stored.quantization_config  # the loaded weights are no longer quantised
    return stored


def folded_weights(backbone: Backbone, context: Context, coefficients: Coefficients) -> dict[str, Tensor]:
    """All weights of the model by name, on the CPU, with the injection folded in; those that it changes are float32.

    A write without a bias gets one if λ is not 0 there.

    Raises:
        BackboneError: a changed write is no projection.
    """
    weights: dict[str, Tensor] = {name: tensor.to("cpu") for name, tensor in backbone.model.state_dict().items()}
    for row, write, path, module in changed_projections(backbone, context, coefficients):
        is_transposed = isinstance(module, Conv1D)  # stored as (n, d)
        weight, bias = weights[f"{path}.weight"], weights.get(f"{path}.bias")
        folded, shift = fold(
            weight.T if is_transposed else weight,
            bias,
            torch.from_numpy(context.vectors[row, write]),
            float(coefficients.scales[row, write, CONTEXT]),
            float(coefficients.scales[row, write, ACTIVATION]),
            None if context.basis is None else torch.from_numpy(context.basis[row, write]),
            None if coefficients.core is None else torch.from_numpy(coefficients.core[row, write]),
        )
        weights[f"{path}.weight"] = (folded.T if is_transposed else folded).contiguous()
        if bias is not None or coefficients.scales[row, write, CONTEXT] != 0:
            weights[f"{path}.bias"] = shift
    return weights


def changed_projections(
    backbone: Backbone, context: Context, coefficients: Coefficients
) -> Iterator[tuple[int, int, str, nn.Linear | Conv1D]]:
    """For each write that the coefficients change: row of the arrays, write, path within the model, module.

    Raises:
        BackboneError: the write is no projection: the family normalises behind it.
    """
    names = {id(module): name for name, module in backbone.model.named_modules()}
    for row, layer in enumerate(context.layers):
        for write, module in enumerate(backbone.writes[layer]):
            if not coefficients.active[row, write]:
                continue
            if not isinstance(module, nn.Linear | Conv1D):
                raise BackboneError(
                    f"export: a {backbone.model.config.model_type} model writes with {names[id(module)]}, a "
                    f"{type(module).__name__} behind its projection; allowed: writes that are projections. Use the adapter "
                    "with the model: Adapter.load(folder).classify(texts), or ifedicl classify"
                )
            yield row, write, names[id(module)], module


def load_folded(exported: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give a model on the meta device its weights; biases that the folded model lacks are 0.

    Raises:
        BackboneError: the weights do not fit the model.
    """
    missing = {
        name: torch.zeros(tensor.shape)
        for name, tensor in exported.state_dict().items()
        if name not in weights and name.endswith(".bias")
    }
    try:
        exported.load_state_dict({name: tensor.to(dtype) for name, tensor in {**weights, **missing}.items()}, assign=True)
    except RuntimeError as error:
        raise BackboneError(f"export: the folded weights do not fit {type(exported).__name__} ({error})") from error
