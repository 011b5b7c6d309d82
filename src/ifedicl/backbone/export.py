"""Folds an adapter into an ordinary checkpoint, which any server runs at the cost of the plain model.

The injection is affine in each write, so a projection can include it exactly if the family stores a bias there. A table says
which families do; for others the adapter stays a separate folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    model = backbone.model
    with torch.device("meta"):  # no memory for weights that are replaced at once
        exported = AutoModelForCausalLM.from_config(_stored_config(model.config), dtype=DTYPES[dtype])
    exported.load_state_dict(_weights(backbone, context, coefficients, exported, DTYPES[dtype]), assign=True)
    exported.tie_weights()
    exported.generation_config = model.generation_config
    with quiet_transformers():
        exported.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)


def _stored_config(config: Any) -> PreTrainedConfig:
    if (storage := STORAGE.get(config.model_type)) is None:
        raise BackboneError(
            f"export: received a {config.model_type} model, whose checkpoints cannot store the adapter's biases; allowed: "
            f"{', '.join(STORAGE)}. Use the adapter with the model: Adapter.load(folder).classify(texts), or ifedicl classify"
        )
    stored = storage.converted(type(config).from_dict(config.to_dict()))
    for name, value in storage.switches.items():
        setattr(stored, name, value)
    if hasattr(stored, "quantization_config"):
        del stored.quantization_config  # the loaded weights are no longer quantised
    return stored


def _weights(
    backbone: Backbone, context: Context, coefficients: Coefficients, exported: nn.Module, dtype: torch.dtype
) -> dict[str, Tensor]:
    """All weights of the exported model, by name."""
    weights: dict[str, Tensor] = {name: tensor.to("cpu") for name, tensor in backbone.model.state_dict().items()}
    # Biases that this model lacks; load_state_dict refuses any other missing weight.
    weights |= {
        name: torch.zeros(tensor.shape)
        for name, tensor in exported.state_dict().items()
        if name not in weights and name.endswith(".bias")
    }
    names = {id(module): name for name, module in backbone.model.named_modules()}
    for row, layer in enumerate(context.layers):
        for write, module in enumerate(backbone.writes[layer]):
            if not coefficients.active[row, write]:
                continue
            path = names[id(module)]
            is_transposed = isinstance(module, Conv1D)  # stored as (n, d)
            weight = weights[f"{path}.weight"]
            folded, shift = fold(
                weight.T if is_transposed else weight,
                weights[f"{path}.bias"],
                torch.from_numpy(context.vectors[row, write]),
                float(coefficients.scales[row, write, CONTEXT]),
                float(coefficients.scales[row, write, ACTIVATION]),
                None if context.basis is None else torch.from_numpy(context.basis[row, write]),
                None if coefficients.core is None else torch.from_numpy(coefficients.core[row, write]),
            )
            weights[f"{path}.weight"] = (folded.T if is_transposed else folded).contiguous()
            weights[f"{path}.bias"] = shift
    return {name: tensor.to(dtype) for name, tensor in weights.items()}
