"""Rows whose tokens do not all follow each other: what such a row tells the model, and which models do as they are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ifedicl.backbone.families import Writes

_MASKED_ATTENTION = ("eager", "sdpa")
"""What adds a mask of our own to its scores as it is; flash attention drops it."""

WIDEST = 8_192
"""Tokens of a row that branches: its mask grows with their square, to 256 MiB of float32 for so many."""


@dataclass(frozen=True, eq=False)
class Branches:
    """Which tokens of each row follow which.

    Attributes:
        positions: ``(B, T)`` int64: how many tokens stand before each one in its own sequence, from where the pass begins.
        seen: ``(B, T, T)`` bool: whether a token (second) sees another of its row (third). Each sees itself.
    """

    positions: Tensor
    seen: Tensor

    def arguments(self, before: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a model is called with.

        Args:
            before: tokens that all rows have in common and that are run already; everyone sees them.
            dtype: the model's.
        """
        seen = torch.nn.functional.pad(self.seen, (before, 0), value=True)
        # A mask of four dimensions is passed to every layer unchanged; of numbers, since eager attention adds it.
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
        return {"attention_mask": mask.unsqueeze(1), "position_ids": self.positions + before}


def branch_limit(writes: Writes, config: Any, window: int) -> int:
    """The longest sequence, in tokens, along which a row may branch; 0 where a model's rows never may.

    A mask of our own takes the place of the model's, sliding window included, so it is right only as long as that window holds
    the whole sequence. ALiBi measures distances by the place in the row, whatever positions it is told.

    Args:
        writes: the family's line of the table.
        config: the model's text configuration.
        window: most tokens in a sequence.
    """
    attention = config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    if not writes.branches or getattr(config, "alibi", False) or attention not in _MASKED_ATTENTION:
        return 0
    return min(window, getattr(config, "sliding_window", None) or window, WIDEST)
