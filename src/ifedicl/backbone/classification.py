"""Writes an adapter as a model with a classification head: ``score``, a matrix without a bias on the last hidden state.

A readout of the last hidden state is such a matrix. So are the centred logits of label words of one token: rows of the LM head.
The text's mean state is not the last one and has no place there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from ifedicl.backbone.devices import DTYPES
from ifedicl.backbone.encoding import Encoder
from ifedicl.backbone.export import folded_weights, load_folded, stored_config
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.quiet import quiet_transformers
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.errors import AdapterError, BackboneError
from ifedicl.kinds.classify import Task

_PROBE = 4  # tokens
_LARGEST_ERROR = 1e-4
"""Of the constant that stands in for an intercept, in float32."""
_INSTEAD = "Use the adapter with the model: Adapter.load(folder).classify(texts), or ifedicl classify"


@dataclass(frozen=True)
class Head:
    """``weights``, ``(C, d)`` float64, of the last hidden state at the prompt's last token; their products are logits."""

    weights: Tensor

    @classmethod
    def of(cls, backbone: Backbone, task: Task, readout: Readout | None) -> Head:
        """The head that scores labels as the readout does, or without one as the label words do.

        Raises:
            AdapterError: the readout reads the text's mean state, or has an intercept that no direction of the states gives.
            BackboneError: label words have several tokens, or the LM head is not linear.
            TaskError: as :class:`Encoder`.
        """
        words, offsets = _centred_words(backbone, task)
        if readout is None:
            weights, intercept = words, offsets
        else:
            if readout.pooled_layers:
                raise AdapterError(
                    f"export: received a readout of the text's mean states at layers {readout.pooled_layers}; allowed: one of "
                    "the last hidden state alone, which is all that a classification head sees. Calibrate with preset servable "
                    "(readout.pooled_depths = [])"
                )
            stated, classes = torch.from_numpy(readout.weights).double(), len(readout.weights)
            of_states, of_words, last = stated[:, : -classes - 1], stated[:, -classes - 1 : -1], stated[:, -1]
            weights, intercept = of_states + of_words @ words, of_words @ offsets + last
        intercept = intercept - intercept.mean()  # what all labels share changes no probability
        if float(intercept.abs().max()) > _LARGEST_ERROR * float(weights.abs().max()):
            weights = weights + intercept[:, None] * _constant_direction(backbone)
        return cls(weights)


def export_classifier(
    backbone: Backbone, context: Context, coefficients: Coefficients, task: Task, head: Head, folder: Path, *, dtype: str
) -> None:
    """Write a model with the injection folded in and a classification head, and its tokenizer.

    Args:
        backbone: the model, which does not change.
        context: global vectors and basis.
        coefficients: to fold in.
        task: names the labels.
        head: of this task.
        folder: an existing folder.
        dtype: of the stored weights.

    Raises:
        BackboneError: the family cannot store the folded weights, or has no classification model.
    """
    config: Any = stored_config(backbone, coefficients)
    tokenizer = right_padded(backbone)
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {label: number for number, label in enumerate(task.labels)}
    config.problem_type = "single_label_classification"
    config.get_text_config().pad_token_id = config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        try:
            exported = AutoModelForSequenceClassification.from_config(config, dtype=DTYPES[dtype])
        except ValueError as error:
            raise BackboneError(
                f"export: transformers has no classification model of the family {config.model_type}. {_INSTEAD}"
            ) from error
    known = exported.state_dict()
    weights = {name: tensor for name, tensor in folded_weights(backbone, context, coefficients).items() if name in known}
    load_folded(exported, {**weights, "score.weight": head.weights}, DTYPES[dtype])
    with quiet_transformers():
        exported.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def right_padded(backbone: Backbone) -> Any:
    """A copy of the tokenizer that pads at the right, where causal models need no positions, and has a padding token."""
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _centred_words(backbone: Backbone, task: Task) -> tuple[Tensor, Tensor]:
    """``(C, d)`` and ``(C,)`` float64: the centred logits of the label words as an affine function of the last state."""
    tree = Encoder(backbone, task).tree
    if not tree.is_flat:
        several = [word for word, tokens in zip(task.label_words, tree.words, strict=True) if len(tokens) > 1]
        raise BackboneError(
            f"export: the label words {', '.join(map(repr, several[:5]))} have several tokens; allowed: one token each, whose "
            f"logits are linear in the last hidden state. Choose other label words and calibrate again. {_INSTEAD}"
        )
    if getattr(backbone.model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        raise BackboneError(
            f"export: the LM head of a {backbone.model.config.model_type} model caps its logits; allowed: one that is linear "
            f"in the last hidden state. {_INSTEAD}"
        )
    head = backbone.model.get_output_embeddings()
    tokens = torch.tensor([word[0] for word in tree.words])
    rows = head.weight.detach()[tokens].cpu().double()
    bias = getattr(head, "bias", None)
    offsets = torch.zeros(len(rows), dtype=torch.float64) if bias is None else bias.detach()[tokens].cpu().double()
    return rows - rows.mean(dim=0), offsets - offsets.mean()


def _constant_direction(backbone: Backbone) -> Tensor:
    """``(d,)`` float64: its product with every last hidden state is 1. It stands in for an intercept.

    A LayerNorm with scale ``g`` and bias ``b`` puts out ``h = g·x + b`` with ``Σx = 0``. So ``Σ h/g = Σ b/g``, a constant.

    Raises:
        AdapterError: the states end in another norm, or its numbers allow no such direction.
    """
    norm = _last_norm(backbone)
    if norm is not None and norm.bias is not None and bool((norm.weight != 0).all()):
        scale, bias = norm.weight.detach().cpu().double(), norm.bias.detach().cpu().double()
        constant = (bias / scale).sum()
        rounding = torch.finfo(torch.float32).eps * (1 + (bias / scale).abs()).sum() / constant.abs().clamp_min(1e-300)
        if rounding < _LARGEST_ERROR:
            return 1 / (scale * constant)
    raise AdapterError(
        "export: received a readout with an intercept, and a classification head has no bias; allowed: a readout without one. "
        "Calibrate with preset servable (readout.pooled_depths = []), whose readout has none"
    )


@torch.inference_mode()
def _last_norm(backbone: Backbone) -> nn.LayerNorm | None:
    """The LayerNorm whose output is the last hidden state; None if another module's is."""
    seen: list[tuple[nn.LayerNorm, Tensor]] = []

    def note(module: nn.Module, _inputs: object, output: Tensor) -> None:
        assert isinstance(module, nn.LayerNorm)
        seen.append((module, output))

    norms = [module for module in backbone.model.base_model.modules() if type(module) is nn.LayerNorm]
    hooks = [module.register_forward_hook(note) for module in norms]
    try:
        states = backbone.hidden_states(torch.arange(1, _PROBE + 1, device=backbone.device).unsqueeze(0))
    finally:
        for hook in hooks:
            hook.remove()
    return next((module for module, output in reversed(seen) if output.data_ptr() == states.data_ptr()), None)
