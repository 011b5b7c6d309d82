"""Stage 1: demonstrations to context vectors (paper Eq. 1-2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ifedicl.backbone.encoding import Tokens
from ifedicl.backbone.hooks import record
from ifedicl.backbone.scoring import Scorer, length_batches, right_padded
from ifedicl.core.vectors import ContextVectors
from ifedicl.settings import VectorSettings


@torch.inference_mode()
def context_vectors(
    scorer: Scorer, prompts: Sequence[Tokens], labels: Sequence[int], settings: VectorSettings
) -> ContextVectors:
    """Run each demonstration alone through the frozen model and sum both writes of every layer at one token.

    Args:
        scorer: model and task.
        prompts: ``N`` encoded prompts.
        labels: the ``N`` labels' positions in the task.
        settings: the read position, and whether sums are kept by class.

    Returns:
        Sums and counts, ``G = C`` with ``balance = "class"``, else 1. The LM head is never run.
    """
    backbone, words = scorer.backbone, scorer.encoder.tree.words
    if settings.read_position == "label":
        sequences = [prompt + words[label] for prompt, label in zip(prompts, labels, strict=True)]
    else:
        sequences = list(prompts)
    by_class = settings.balance == "class"
    result = ContextVectors.zeros(len(words) if by_class else 1, backbone.layers, backbone.width)
    groups = np.asarray(labels) if by_class else np.zeros(len(labels), dtype=np.int64)
    with record(backbone) as recording:
        for batch in length_batches([len(sequence) for sequence in sequences], scorer.budget):
            rows = [sequences[position] for position in batch]
            recording.positions = torch.tensor([len(row) - 1 for row in rows], device=backbone.device)
            backbone.hidden_states(right_padded(rows, backbone.device))
            writes = recording.stacked(backbone.layers).double().cpu().numpy()  # (L, 2, B, d)
            np.add.at(result.sums, groups[batch], writes.transpose(2, 0, 1, 3))
            np.add.at(result.counts, groups[batch], 1)
    return result
