"""Stage 1: demonstrations to context vectors (paper Eq. 1-2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.capture import run
from ifedicl.backbone.hooks import Recording, record
from ifedicl.backbone.layout import right_padded
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lock import exclusive
from ifedicl.backbone.passes import length_batches
from ifedicl.backbone.prompts import Tokens
from ifedicl.core.transfer import to_device, to_host
from ifedicl.core.vectors import WRITES, Array64, ContextVectors
from ifedicl.settings import Method


def context_vectors(scorer: BaseScorer, prompts: Sequence[Tokens], labels: Sequence[Any], method: Method) -> ContextVectors:
    """Run each demonstration alone through the frozen model and sum both writes of every injected layer at one token.

    Args:
        scorer: model and task.
        prompts: ``N`` encoded prompts.
        labels: of the ``N`` examples.
        method: the read position, and which examples are summed together.

    Returns:
        Means and counts of ``method.groups`` groups. The LM head is never run.
    """
    backbone, device = scorer.backbone, scorer.backbone.device
    size = method.groups(scorer.task.classes)
    layers, groups = method.injection.active_layers(backbone.layers), groups_of(scorer.classes_of(labels), method)
    sums = torch.zeros(size, len(layers), len(WRITES), backbone.width, dtype=torch.float64, device=device)
    sequences, key = scorer.demonstrations(prompts, labels, method.vectors.read_position), ("extraction", layers)
    for batch in length_batches([backbone.padded(len(sequence)) for sequence in sequences], scorer.budget):
        rows = [sequences[position] for position in batch]
        scorer.on_pass()
        given = {
            "tokens": right_padded(rows, device, backbone.padded(max(map(len, rows)))),
            "positions": to_device(np.array([len(row) - 1 for row in rows]), device),
            "one_hot": to_device(np.eye(size)[:, groups[batch]], device),  # (G, B)
            "sums": sums,
        }
        with exclusive(backbone):
            (sums,) = run(backbone.captures, key, given, partial(_added, backbone, layers))
    counts = np.bincount(groups, minlength=size)
    return ContextVectors.of_sums(to_host(sums)[0], counts)


def example_writes(
    scorer: BaseScorer, prompts: Sequence[Tokens], labels: Sequence[Any], method: Method
) -> Iterator[tuple[list[int], Array64]]:
    """The writes of each demonstration, as summed by :func:`context_vectors`. They stay with the owner.

    Yields:
        For each batch the positions of ``B`` demonstrations and their ``(B, L, 2, d)`` writes.
    """
    for batch, recording in _passes(scorer, prompts, labels, method):
        (writes,) = to_host(recording.stacked().double())  # (L, 2, B, d)
        yield batch, writes.transpose(2, 0, 1, 3)


@torch.inference_mode()
def _added(backbone: Backbone, layers: range, given: Mapping[str, Tensor]) -> tuple[Tensor]:
    """The ``(G, L, 2, d)`` float64 sums of groups, in place, with the writes of ``B`` demonstrations added."""
    with record(backbone, layers) as recording:
        recording.positions = given["positions"]
        backbone.hidden_states(given["tokens"])
    _add(given["sums"], recording, given["one_hot"])
    return (given["sums"],)


@torch.inference_mode()
def _passes(
    scorer: BaseScorer, prompts: Sequence[Tokens], labels: Sequence[Any], method: Method
) -> Iterator[tuple[list[int], Recording]]:
    """For each pass the positions of its demonstrations, and their writes at the read position, on the device."""
    backbone, sequences = scorer.backbone, scorer.demonstrations(prompts, labels, method.vectors.read_position)
    layers = method.injection.active_layers(backbone.layers)
    for batch in length_batches([len(sequence) for sequence in sequences], scorer.budget):
        scorer.on_pass()
        rows = [sequences[position] for position in batch]
        with record(backbone, layers) as recording:  # each pass its own: who takes the writes does not hold the model
            recording.positions = to_device(np.array([len(row) - 1 for row in rows]), backbone.device)
            backbone.hidden_states(right_padded(rows, backbone.device))
        yield batch, recording


def _add(sums: Tensor, recording: Recording, one_hot: Tensor) -> None:
    """Add the writes of ``B`` demonstrations to the ``(G, L, 2, d)`` float64 sums of their groups, ``(G, B)``, on the device.

    A product with one-hot rows adds in a fixed order, where a GPU's indexed sum would add in any.
    """
    # One layer at a time: float64 takes four times a write's memory.
    for of_layer, layer in zip(sums.unbind(1), recording.layers, strict=True):
        of_both = [recording.rows[layer, write].to(sums.device) for write in range(len(WRITES))]
        writes = torch.stack(of_both).double()  # (2, B, d)
        of_layer.transpose(0, 1).baddbmm_(one_hot.expand(len(WRITES), -1, -1), writes)


def groups_of(classes: Sequence[int], method: Method) -> npt.NDArray[np.int64]:
    """``(N,)``: the group of each example: its class, or 0 if all classes are summed together."""
    return np.array([method.group_of(number) for number in classes], dtype=np.int64)
