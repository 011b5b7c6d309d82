"""Passes of several simulated clients as one: their rows share it, each row with its own client's coefficients.

Each client computes in a thread of its own, and at each pass waits until all that still compute have come to theirs. The rows
that meet depend on the clients alone, not on which thread is fast, so a run can be repeated bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.hooks import injected_by_owner
from ifedicl.backbone.losses import Loss
from ifedicl.backbone.prompts import Tokens
from ifedicl.core.subspace import ContextTensors


@dataclass(eq=False)
class Share:
    """One client's rows of a pass.

    Attributes:
        scorer: of the client. All clients have one model and one task.
        loss_of: of its rows.
        context: global vectors and basis, on the model's device.
        digest: of the context; only shares of one context meet in a pass.
        values: the coefficients, differentiable, on the model's device.
        active: ``(L, 2)``: the writes to change.
        prompts: encoded.
        labels: theirs.
        scale: factor of the summed loss.
    """

    scorer: BaseScorer
    loss_of: Loss
    context: ContextTensors
    digest: str
    values: Mapping[str, Tensor]
    active: npt.NDArray[np.bool_]
    prompts: Sequence[Tokens]
    labels: Sequence[Any]
    scale: float
    _loss: Tensor | None = field(default=None, init=False)
    _error: BaseException | None = field(default=None, init=False)

    @property
    def is_done(self) -> bool:
        """Whether its pass has run or failed."""
        return self._loss is not None or self._error is not None

    @property
    def loss(self) -> Tensor:
        """The scaled loss, after the pass; raises what the pass raised."""
        if self._error is not None:
            raise self._error
        assert self._loss is not None
        return self._loss


class Lockstep:
    """Where clients wait for each other. Threads that are no members of a group run their passes alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._places: dict[int, int] = {}
        self._computing = 0
        self._waiting: dict[int, Share] = {}

    def begin(self, members: int) -> None:
        """A group of so many threads begins; each must come to :meth:`member`."""
        with self._changed:
            self._computing = members

    @contextmanager
    def member(self, place: int) -> Iterator[None]:
        """Make this thread a member of the group until the block ends; ``place`` is its own in the order of the rows."""
        thread = threading.get_ident()
        with self._changed:
            self._places[thread] = place
        try:
            yield
        finally:
            with self._changed:
                del self._places[thread]
                self._computing -= 1
                self._run_if_all_wait()

    def backward(self, share: Share) -> Tensor:
        """Add the gradient of a share to the leaves of its coefficients, in a pass with those of the group; its loss."""
        with self._changed:
            place = self._places.get(threading.get_ident())
            if place is None:
                _run([share])
            else:
                self._waiting[place] = share
                self._run_if_all_wait()
                self._changed.wait_for(lambda: share.is_done)
        return share.loss

    def _run_if_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < self._computing:
            return
        shares = [self._waiting[place] for place in sorted(self._waiting)]
        self._waiting.clear()
        for group in _groups(shares):
            _run(group)
        self._changed.notify_all()


def _groups(shares: Sequence[Share]) -> list[list[Share]]:
    """Shares in their order, in passes that the budget of a pass with gradients allows."""
    scorer, groups = shares[0].scorer, list[list[Share]]()
    together, labels = list[Tokens](), list[Any]()
    for share in shares:
        together += share.prompts
        labels += share.labels
        if groups and share.digest == groups[-1][0].digest and len(scorer.training_batches(together, labels)) == 1:
            groups[-1].append(share)
        else:
            groups.append([share])
            together, labels = list(share.prompts), list(share.labels)
    return groups


def _run(shares: Sequence[Share]) -> None:
    """One pass and its gradients; errors stay with the shares."""
    try:
        for share, loss in zip(shares, _losses(shares), strict=True):
            share._loss = loss  # noqa: SLF001 - set here only
    except BaseException as error:
        for share in shares:
            share._error = error  # noqa: SLF001


def _losses(shares: Sequence[Share]) -> list[Tensor]:
    first, counts = shares[0], [len(share.labels) for share in shares]
    values = [share.values for share in shares]
    prompts = [prompt for share in shares for prompt in share.prompts]
    labels = [label for share in shares for label in share.labels]
    with injected_by_owner(first.scorer.backbone, first.context, values, first.active, counts):
        losses = first.scorer.losses(first.loss_of, prompts, labels)
    parts = torch.split(losses, counts)
    scaled = [part.sum() * share.scale for part, share in zip(parts, shares, strict=True)]
    torch.stack(scaled).sum().backward()  # type: ignore[no-untyped-call]
    return [loss.detach() for loss in scaled]
