"""Stage 1: demonstrations to context vectors (paper Eq. 1-2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ifedicl.backbone.encoding import Tokens
from ifedicl.backbone.hooks import record
from ifedicl.backbone.layout import right_padded
from ifedicl.backbone.scoring import Scorer, length_batches
from ifedicl.core.vectors import WRITES, Array64, ContextVectors
from ifedicl.settings import Method


def context_vectors(scorer: Scorer, prompts: Sequence[Tokens], labels: Sequence[int], method: Method) -> ContextVectors:
    """Run each demonstration alone through the frozen model and sum both writes of every injected layer at one token.

    Args:
        scorer: model and task.
        prompts: ``N`` encoded prompts.
        labels: the ``N`` labels' positions in the task.
        method: the read position, and which examples are summed together.

    Returns:
        Means and counts of ``method.groups`` groups. The LM head is never run.
    """
    backbone = scorer.backbone
    size = method.groups(len(scorer.encoder.tree.words))
    layers = method.injection.active_layers(backbone.layers)
    sums, counts = np.zeros((size, len(layers), len(WRITES), backbone.width)), np.zeros(size, dtype=np.int64)
    groups = groups_of(labels, method)
    for batch, writes in example_writes(scorer, prompts, labels, method):
        np.add.at(sums, groups[batch], writes)
        np.add.at(counts, groups[batch], 1)
    return ContextVectors.of_sums(sums, counts)


@torch.inference_mode()
def example_writes(
    scorer: Scorer, prompts: Sequence[Tokens], labels: Sequence[int], method: Method
) -> Iterator[tuple[list[int], Array64]]:
    """The writes of each demonstration, as summed by :func:`context_vectors`. They stay with the owner.

    Yields:
        For each batch the positions of ``B`` demonstrations and their ``(B, L, 2, d)`` writes.
    """
    backbone, words = scorer.backbone, scorer.encoder.tree.words
    if method.vectors.read_position == "label":
        sequences = [prompt + words[label] for prompt, label in zip(prompts, labels, strict=True)]
    else:
        sequences = list(prompts)
    layers = method.injection.active_layers(backbone.layers)
    for batch in length_batches([len(sequence) for sequence in sequences], scorer.budget):
        scorer.on_pass()
        rows = [sequences[position] for position in batch]
        with record(backbone, layers) as recording:  # each pass its own: who takes the writes does not hold the model
            recording.positions = torch.tensor([len(row) - 1 for row in rows], device=backbone.device)
            backbone.hidden_states(right_padded(rows, backbone.device))
        writes = recording.stacked().double().cpu().numpy()  # (L, 2, B, d)
        yield batch, writes.transpose(2, 0, 1, 3)


def groups_of(labels: Sequence[int], method: Method) -> npt.NDArray[np.int64]:
    """``(N,)``: the group of each example: its class, or 0 if all classes are summed together."""
    return np.array([method.group_of(label) for label in labels], dtype=np.int64)
