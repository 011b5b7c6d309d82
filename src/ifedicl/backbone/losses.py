"""The losses of training, for tasks of all kinds.

Each loss is in two halves. :class:`Fed` is everything that differs from batch to batch, made on the host; what is computed with
it reads nothing else, so that a pass can be captured once and replayed with other batches (:mod:`~ifedicl.backbone.capture`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ifedicl.backbone.layout import Row
from ifedicl.backbone.prompts import Tokens

Padded: TypeAlias = Callable[[int], int]
"""The width of padded rows, for that of the longest."""


@dataclass(frozen=True, eq=False)
class Fed:
    """A batch with its labels.

    Attributes:
        rows: of the pass.
        width: tokens to which rows are padded.
        tensors: by name, on the model's device; places are counted in right-padded rows.
    """

    rows: Sequence[Row]
    width: int
    tensors: Mapping[str, Tensor]


class Answers(Protocol):
    """What a kind's answers need of a model's states: both losses, each in two halves."""

    def label_fed(self, prompts: Sequence[Tokens], labels: Sequence[Any], padded: Padded, /) -> Fed:
        """For :meth:`label_losses`."""
        ...

    def label_losses(self, states: Tensor, fed: Mapping[str, Tensor], /) -> Tensor:
        """``(B,)``: ``-log P(answer | prompt)`` among the possible answers."""
        ...

    def word_fed(self, prompts: Sequence[Tokens], labels: Sequence[Any], padded: Padded, /) -> Fed:
        """For :meth:`word_losses`."""
        ...

    def word_losses(self, states: Tensor, fed: Mapping[str, Tensor], /) -> Tensor:
        """``(B,)``: ``-log P(answer | prompt)`` over the whole vocabulary (paper Eq. 6)."""
        ...


@dataclass(frozen=True)
class Loss:
    """The two halves of a loss.

    Attributes:
        fed: of a kind's answers, prompts and labels; the last argument gives the width to which rows are padded for that of the
            longest.
        losses: ``(B,)`` float32 in nats, of the answers, the rows' ``(B·R, T, d)`` states and what was fed.
    """

    fed: Callable[[Answers, Sequence[Tokens], Sequence[Any], Padded], Fed]
    losses: Callable[[Answers, Tensor, Mapping[str, Tensor]], Tensor]


LABELS = Loss(
    lambda answers, prompts, labels, padded: answers.label_fed(prompts, labels, padded),
    lambda answers, states, fed: answers.label_losses(states, fed),
)
WORDS = Loss(
    lambda answers, prompts, labels, padded: answers.word_fed(prompts, labels, padded),
    lambda answers, states, fed: answers.word_losses(states, fed),
)
"""The losses among the answers, and over the whole vocabulary."""


def sum_places(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """``(most, B)``: which values a row's sum has, in their order; a GPU's indexed sum would add in any.

    Behind the last value is a zero. For :func:`row_sums`.
    """
    places = np.full((max(lengths), len(lengths)), sum(lengths), dtype=np.int64)
    ends = np.cumsum(lengths)
    for row, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        places[:length, row] = np.arange(end - length, end)
    return places


def row_sums(values: Tensor, places: Tensor) -> Tensor:
    """``(B,)``: the sums of the ``(N,)`` values at :func:`sum_places`, on the device."""
    steps = functional.pad(values, (0, 1)).index_select(0, places.flatten()).view(places.shape)
    sums: Tensor = sum(steps.unbind(), torch.zeros_like(steps[0]))
    return sums
