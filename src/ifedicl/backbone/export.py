"""An adapter folded into an ordinary checkpoint: any server runs it at the price of the plain model.

The injection is affine in each write, so a projection takes it in exactly, given that the family can store a bias there. Which
families can is a table; the others keep the adapter beside the model.
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

from ifedicl.backbone.load import DTYPES, Backbone, quiet_transformers
from ifedicl.core.coefficients import ACTIVATION, CONTEXT, Coefficients
from ifedicl.core.injection import fold
from ifedicl.core.subspace import Context
from ifedicl.errors import BackboneError


def _unchanged(config: Any) -> Any:
    return config


def _as_llama(config: Any) -> Any:
    """The same computation as a Llama, which can store biases.

    Raises:
        BackboneError: some layer looks back through a sliding window, which a Llama does not.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ()
    slides = "sliding_attention" in kinds or (not kinds and window is not None)
    if slides and window is not None and window < config.max_position_embeddings:
        raise BackboneError(
            f"a {config.model_type} whose layers look back {window} tokens cannot be stored as a Llama, and a "
            f"{config.model_type} stores no biases: keep the adapter beside the model (Adapter.load, ifedicl classify)"
        )
    names = set(LlamaConfig().to_dict()) - {"model_type", "architectures", "transformers_version", "attention_bias", "mlp_bias"}
    return LlamaConfig(**{name: value for name, value in config.to_dict().items() if name in names})


@dataclass(frozen=True)
class Storage:
    """How a family stores biases behind its writes.

    Attributes:
        switches: fields of its configuration that give all projections biases.
        turned: the configuration it is stored under.
    """

    switches: Mapping[str, bool] = field(default_factory=dict)
    turned: Callable[[Any], Any] = _unchanged


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
"""By ``config.model_type``; families that are not here have no place for a bias, or normalise after the projection."""


def export_folded(backbone: Backbone, context: Context, coefficients: Coefficients, folder: Path, *, dtype: str) -> None:
    """Write model and tokenizer with the injection folded in.

    Args:
        backbone: the model; it is left as it was.
        context: global vectors and basis.
        coefficients: what is folded in.
        folder: exists; what it holds is overwritten where names are equal.
        dtype: of the stored weights: ``float32``, ``bfloat16`` or ``float16``. Folding is computed in float32, and is as exact
            as the dtype it is stored in.

    Raises:
        BackboneError: the family cannot store it.
    """
    model = backbone.model
    storage = _storage(model.config.model_type)
    config = _configured(model.config, storage)
    with torch.device("meta"):  # no memory for weights that are replaced at once
        exported = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    exported.load_state_dict(_weights(backbone, context, coefficients, exported, DTYPES[dtype]), assign=True)
    exported.tie_weights()
    exported.generation_config = model.generation_config
    with quiet_transformers():
        exported.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)


def _storage(model_type: str) -> Storage:
    if model_type not in STORAGE:
        raise BackboneError(
            f"a {model_type} checkpoint has no place for what the adapter adds; those of {', '.join(STORAGE)} have. Keep the "
            "adapter beside the model: Adapter.load(folder).classify(texts), or ifedicl classify"
        )
    return STORAGE[model_type]


def _configured(config: Any, storage: Storage) -> PreTrainedConfig:
    turned = storage.turned(type(config).from_dict(config.to_dict()))
    for name, value in storage.switches.items():
        setattr(turned, name, value)
    if hasattr(turned, "quantization_config"):
        del turned.quantization_config  # the weights are plain by now
    return turned


def _weights(
    backbone: Backbone, context: Context, coefficients: Coefficients, exported: nn.Module, dtype: torch.dtype
) -> dict[str, Tensor]:
    """All weights of the exported model, by name."""
    own: dict[str, Tensor] = {name: tensor.to("cpu") for name, tensor in backbone.model.state_dict().items()}
    # Biases that the family can store and this model lacks; of another missing weight load_state_dict complains.
    own |= {
        name: torch.zeros(tensor.shape)
        for name, tensor in exported.state_dict().items()
        if name not in own and name.endswith(".bias")
    }
    names = {id(module): name for name, module in backbone.model.named_modules()}
    for row, layer in enumerate(context.layers):
        for write, module in enumerate(backbone.writes[layer]):
            if not coefficients.active[row, write]:
                continue
            path = names[id(module)]
            turned = isinstance(module, Conv1D)  # stored as (n, d)
            weight, bias = own[f"{path}.weight"], own[f"{path}.bias"]
            folded, shift = fold(
                weight.T if turned else weight,
                bias,
                torch.from_numpy(context.vectors[row, write]),
                float(coefficients.scales[row, write, CONTEXT]),
                float(coefficients.scales[row, write, ACTIVATION]),
                None if context.basis is None else torch.from_numpy(context.basis[row, write]),
                None if coefficients.core is None else torch.from_numpy(coefficients.core[row, write]),
            )
            own[f"{path}.weight"] = (folded.T if turned else folded).contiguous()
            own[f"{path}.bias"] = shift
    return {name: tensor.to(dtype) for name, tensor in own.items()}
