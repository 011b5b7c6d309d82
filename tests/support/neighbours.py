"""Private sums of neighbouring examples, as released before the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ifedicl import calibrate, seeds
from ifedicl.backbone.hooks import Watcher
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import EncodedExamples
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import Objective
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form, cold_start
from ifedicl.core.subspace import Context, ContextTensors, subspace_basis
from ifedicl.core.vectors import Array64
from ifedicl.dp.accountant import Budget
from ifedicl.dp.clipping import Bound
from ifedicl.federation.dp_client import DPSums
from ifedicl.federation.manifest import Manifest
from ifedicl.kinds.classify import Example, Task
from ifedicl.settings import Method
from tests.support.private import dp_sums


def bound_of(sums: DPSums) -> Bound:
    """The bound of one example's part in a gradient sum."""
    return sums.plan.by_kind["gradient"].bound


def steps_of(found: GradientSum, sums: DPSums) -> Array64:
    """``(D,)``: the integers that are released, before the noise."""
    steps = np.concatenate([array.ravel() for array in found.arrays.values()]).astype(np.float64) / bound_of(sums).step
    np.testing.assert_array_equal(steps, np.rint(steps))
    return steps


@dataclass
class PrivateOwner:
    """An owner's examples under private sums. What an example gives alone is kept."""

    scorer: Scorer
    examples: EncodedExamples
    context: Context
    coefficients: Coefficients
    method: Method
    sums: DPSums
    _own: dict[int, Array64] = field(default_factory=dict)

    @classmethod
    def of(
        cls, backbone: Backbone, task: Task, method: Method, examples: Sequence[Example], public: Sequence[str]
    ) -> PrivateOwner:
        """With random global vectors, and a random subspace of the method's rank."""
        first, rank = method.injection.active_layers(backbone.layers).start, method.subspace.rank if method.subspace else 0
        draw, form = np.random.default_rng(0), Form(backbone.layers - first, rank)
        vectors = draw.standard_normal((form.layers, 2, backbone.width)).astype(np.float32)
        basis = subspace_basis(draw.standard_normal((0, *vectors.shape)), rank, draw, first_layer=first) if rank else None
        scorer, context = Scorer(backbone, task, first_layer=first), Context(vectors, basis, first)
        start = cold_start(form, method.injection)
        return cls(
            scorer, scorer.encoded(examples), context, start, method, dp_sums(Manifest.of(task, method, backbone.shape), public)
        )

    def released(self, rows: Sequence[int]) -> Array64:
        """``(D,)``: the released integers of some examples."""
        found = self.sums.gradient(self.scorer, self.examples, self.context, self.coefficients, self.method, rows)
        return steps_of(found, self.sums)

    def own(self, row: int) -> Array64:
        """``(D,)``: what an example gives alone."""
        if row not in self._own:
            self._own[row] = self.released([row])
        return self._own[row]

    def starts_anew(self) -> None:
        """As after a restart, with no cached states."""
        self.scorer = Scorer(self.scorer.backbone, self.scorer.task, first_layer=self.context.first_layer)


def try_neighbours(
    owner: PrivateOwner, monkeypatch: pytest.MonkeyPatch, *, draws: int, fresh: int, seed: str, largest: int = 16
) -> None:
    """Compare released integers with and without one example, in random companies and orders.

    Args:
        owner: of the examples.
        monkeypatch: lets the budget never end, and repeats passes.
        draws: how many pairs.
        fresh: draws after which everything is computed anew: nothing that was cached may make a difference.
        seed: of the draws.
        largest: most examples of a sum; most sums are of four at most.
    """
    monkeypatch.setattr(Budget, "after", lambda self, release: self)  # what is spent is of other tests
    passes, choice, longest = _repeat_passes(monkeypatch), seeds.generator(1, seed), 0.0
    for number in range(draws):
        if number % fresh == 0:
            passes.clear()
            owner.starts_anew()
        size = largest if number % 25 == 0 else choice.integers(1, 5)
        rows = [int(row) for row in choice.permutation(len(owner.examples.labels))[:size]]
        without = [int(row) for row in choice.permutation(rows) if row != rows[0]]  # in another order
        change = owner.released(rows) - owner.released(without)
        np.testing.assert_array_equal(change, owner.own(rows[0]))
        length = float(np.linalg.norm(change))
        assert length <= bound_of(owner.sums).sensitivity
        longest = max(longest, length)
    bound = bound_of(owner.sums)
    assert longest > 0.9 * bound.clip / bound.step, "nothing was clipped, so the bound was not tried"


def _repeat_passes(monkeypatch: pytest.MonkeyPatch) -> dict[Any, dict[str, Tensor]]:
    """Run each pass once: the same rows together give the same gradients again. Other rows together are another pass."""
    passes: dict[Any, dict[str, Tensor]] = {}
    fill, run, filled = calibrate._row_gradients, Objective.pass_backward, list[Mapping[str, Tensor]]()

    def filling(found: Mapping[str, Tensor], context: ContextTensors) -> Watcher:
        filled[:] = [found]
        return fill(found, context)

    def once(self: Objective, values: Any, rows: Sequence[int], **options: Any) -> Tensor:
        key = (tuple(self._prompts[row] for row in rows), tuple(self._labels[row] for row in rows))
        if key not in passes:
            run(self, values, rows, **options)
            passes[key] = {name: array.clone() for name, array in filled[0].items()}
        for name, array in passes[key].items():
            filled[0][name].copy_(array)
        return torch.zeros(())

    monkeypatch.setattr(calibrate, "_row_gradients", filling)
    monkeypatch.setattr(Objective, "pass_backward", once)
    return passes
