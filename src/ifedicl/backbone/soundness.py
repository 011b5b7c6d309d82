"""Whether a loaded model and its tokenizer fit together and hold numbers."""

from __future__ import annotations

from typing import Any

import torch

from ifedicl.backbone.placement import present
from ifedicl.errors import BackboneError


@torch.inference_mode()
def refuse_not_finite(model: Any, source: str) -> None:
    """Refuse weights that are NaN or infinite: every answer would be NaN.

    Raises:
        BackboneError: a parameter holds such a number.
    """
    # A sum is finite if all its terms are, up to an overflow of float32, and takes no memory; the second look is rare.
    spoilt = []
    for path, module in model.named_modules():
        with present(module):
            spoilt += [
                f"{path}.{name}"
                for name, weight in module.named_parameters(recurse=False)
                if not torch.isfinite(weight.sum(dtype=torch.float32)) and not torch.isfinite(weight).all()
            ]
    if not spoilt:
        return
    dtype = str(model.dtype).removeprefix("torch.")
    remedy = "Download the model again; if it is your own, save a checkpoint from before its training diverged"
    if model.dtype == torch.float16:
        remedy = f"float16 holds numbers up to 65,504 only: use model.dtype = 'bfloat16' or 'float32'. Otherwise: {remedy}"
    raise BackboneError(
        f"model.source: {source}: {len(spoilt)} tensors hold NaN or infinity in {dtype}, for instance {spoilt[0]}; allowed: "
        f"finite numbers. {remedy}"
    )


def refuse_tokens_without_rows(model: Any, tokenizer: Any, source: str) -> None:
    """Refuse a tokenizer with tokens for which the embedding has no row.

    Special tokens that no prompt holds are allowed: many models have a padding token without a row, and ifedicl pads with none.

    Raises:
        BackboneError: a text, a chat turn or the tokenizer's own beginning can give such a token.
    """
    rows = min(
        len(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None
    )
    outside = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not outside:
        return
    added = tokenizer.added_tokens_decoder
    prompts = _prompts(tokenizer)
    used = [token for token, number in outside.items() if number in prompts or not getattr(added.get(number), "special", False)]
    if used:
        shown = ", ".join(repr(token) for token in sorted(used)[:3])
        raise BackboneError(
            f"model.source: {source}: its tokenizer has {len(used)} tokens without a row in the embedding of {rows:,} rows "
            f"(for instance {shown}); allowed: a row for each. Use the tokenizer that belongs to the weights, or make rows for "
            "its tokens with resize_token_embeddings() of transformers, and save both again"
        )


def _prompts(tokenizer: Any) -> set[int]:
    """The tokens of a short text, and of a chat turn if the model has chats."""
    tokens = set(tokenizer("a")["input_ids"])
    if tokenizer.chat_template:
        try:
            turn = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
        except Exception:  # a template can raise anything; a task that uses it reports that
            return tokens
        tokens |= set(tokenizer(turn, add_special_tokens=False)["input_ids"])
    return tokens
