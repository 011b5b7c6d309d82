"""Writes an adapter as a LoRA in the layout of ``peft``, which vLLM and others serve beside the base model.

With λ = 0 and β = 1 the change of a write ``y = Wx + b`` is ``UᵀΓU y``: a LoRA of rank r with ``B = Uᵀ`` and ``A = ΓUW``. Of a
bias, ``UᵀΓU b`` is left over, which ``peft`` stores as the bias of ``B`` (``lora_bias``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ifedicl import files
from ifedicl.backbone.devices import DTYPES
from ifedicl.backbone.export import changed_projections
from ifedicl.backbone.load import Backbone
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.errors import AdapterError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_RANKS = (8, 16, 32, 64, 128, 256)
"""What vLLM's ``--max-lora-rank`` takes; a rank between two of them is padded with zeros."""
_PREFIX = "base_model.model."


def padded_rank(rank: int) -> int:
    """The smallest rank of servers that holds ``rank``, 1 to 256."""
    return next(allowed for allowed in _RANKS if allowed >= rank)


def has_bias(folder: Path) -> bool:
    """Whether a folder holds a LoRA with biases."""
    file = folder / CONFIG
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8"))["lora_bias"])


@dataclass(frozen=True)
class Factors:
    """The LoRA of one projection, in float64 on the CPU.

    Attributes:
        path: of the projection, from the model.
        layer: its layer, from 0.
        first: ``A = ΓUW``, ``(r, n)``.
        second: ``B = Uᵀ``, ``(d, r)``.
        bias: ``UᵀΓU b``, ``(d,)``: what the projection's own bias adds.
        has_columns: the model stores the projection's weight as ``(n, d)``.
    """

    path: str
    layer: int
    first: Tensor
    second: Tensor
    bias: Tensor
    has_columns: bool


def factors_of(backbone: Backbone, context: Context, coefficients: Coefficients) -> list[Factors]:
    """The LoRA of each projection that an adapter of Γ alone changes; at least one.

    Raises:
        AdapterError: λ or β was moved, or the adapter injects nothing.
        BackboneError: the family normalises behind its projections.
    """
    if not coefficients.is_core_alone or coefficients.core is None:
        moved = "it has no core" if coefficients.core is None else "its λ or β was moved"
        raise AdapterError(
            f"export: received an adapter that is no LoRA: {moved}; allowed: a core alone. Calibrate with preset servable, or "
            "export it folded: --as checkpoint, --as sequence-classification"
        )
    factors = [
        Factors(path, context.layers[row], *_factored(module, context, coefficients, row, write), isinstance(module, Conv1D))
        for row, write, path, module in changed_projections(backbone, context, coefficients)
    ]
    if not factors:
        raise AdapterError(
            "export: received an adapter that changes no write (its gate is closed, or it is a readout alone); allowed: a core "
            "that is not 0. Serve the base model, or export --as sequence-classification if there is a readout"
        )
    return factors


def export_lora(
    backbone: Backbone,
    context: Context,
    coefficients: Coefficients,
    folder: Path,
    *,
    dtype: str,
    base: str,
    revision: str | None = None,
    head: Tensor | None = None,
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        backbone: the model.
        context: global vectors and basis.
        coefficients: Γ alone.
        folder: an existing folder.
        dtype: of the stored weights. They are computed in float64.
        base: id or folder of the model, for the configuration.
        revision: of the id.
        head: ``(C, d)``: weights of a classification head, stored as the module ``score``; None: the model predicts words.

    Raises:
        AdapterError: λ or β was moved, or the adapter injects nothing.
        BackboneError: the family normalises behind its projections.
    """
    factors = factors_of(backbone, context, coefficients)
    rank = padded_rank(context.rank)
    with_bias = any(bool(factor.bias.any()) for factor in factors)
    tensors = dict[str, Tensor]()
    for factor in factors:
        pad, name = rank - len(factor.first), f"{_PREFIX}{factor.path}"
        tensors[f"{name}.lora_A.weight"] = nn.functional.pad(factor.first, (0, 0, 0, pad))
        tensors[f"{name}.lora_B.weight"] = nn.functional.pad(factor.second, (0, pad))
        if with_bias:
            tensors[f"{name}.lora_B.bias"] = factor.bias
    if head is not None:
        tensors[f"{_PREFIX}score.weight"] = head
    stored = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in tensors.items()}
    config: Mapping[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "lora_bias": with_bias,
        "bias": "none",
        "fan_in_fan_out": any(factor.has_columns for factor in factors),
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted({_within_layer(factor.path, factor.layer) for factor in factors}),
        "layers_to_transform": sorted({factor.layer for factor in factors}),
        "modules_to_save": None if head is None else ["score"],
    }
    files.write_bytes(folder / WEIGHTS, save(stored, metadata={"format": "pt"}))
    files.write_json(folder / CONFIG, config)


def _factored(
    module: nn.Linear | Conv1D, context: Context, coefficients: Coefficients, row: int, write: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``A = ΓUW``, ``(r, n)``; ``B = Uᵀ``, ``(d, r)``; ``UᵀΓU b``, ``(d,)``."""
    assert context.basis is not None
    assert coefficients.core is not None
    basis = torch.from_numpy(context.basis[row, write]).double()  # (r, d)
    through = torch.from_numpy(coefficients.core[row, write]).double() @ basis  # (r, d)
    weight = module.weight.detach().cpu().double()
    first = through @ (weight.T if isinstance(module, Conv1D) else weight)
    bias = torch.zeros(basis.shape[1], dtype=torch.float64) if module.bias is None else module.bias.detach().cpu().double()
    return first, basis.T, basis.T @ (through @ bias)


def _within_layer(path: str, layer: int) -> str:
    """``self_attn.o_proj`` of ``model.layers.3.self_attn.o_proj``."""
    return path.rpartition(f".{layer}.")[2]
