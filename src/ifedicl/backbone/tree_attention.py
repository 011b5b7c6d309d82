"""Rows that branch: the mask and positions that the model gets, and which models respect them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ifedicl.backbone.families import Writes

_MASKED_ATTENTION = ("eager", "sdpa")
"""The implementations that add a given mask to the attention scores; flash attention ignores it."""

WIDEST = 8_192
"""Most tokens of a row that branches: its mask grows with their square, here to 256 MiB of float32."""


@dataclass(frozen=True, eq=False)
class Branches:
    """Which tokens of each row follow which.

    Attributes:
        positions: ``(B, T)`` int64: how many tokens precede each token in its sequence, from the start of the pass.
        seen: ``(B, T, T)`` bool: whether a token (second axis) attends to another of its row (third axis), itself included.
    """

    positions: Tensor
    seen: Tensor

    def arguments(self, before: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The model's arguments, for ``before`` tokens of a prefix that every token attends to and a model of ``dtype``."""
        seen = torch.nn.functional.pad(self.seen, (before, 0), value=True)
        # A mask of four dimensions reaches every layer unchanged. It holds numbers, since eager attention adds it.
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
        return {"attention_mask": mask.unsqueeze(1), "position_ids": self.positions + before}


def branch_limit(writes: Writes, config: Any, window: int) -> int:
    """The longest sequence, in tokens, of a row that branches; 0 if the model's rows never branch.

    The given mask replaces that of the model, sliding window included, so it is correct only while that window holds the whole
    sequence. ALiBi measures distances by the index in the row and ignores the given positions.

    Args:
        writes: the family's entry in the table.
        config: the model's text configuration.
        window: most tokens in a sequence.
    """
    attention = config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    if not writes.branches or getattr(config, "alibi", False) or attention not in _MASKED_ATTENTION:
        return 0
    return min(window, getattr(config, "sliding_window", None) or window, WIDEST)
