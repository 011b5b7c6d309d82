"""Each example's own gradient, against micro-batches of one."""

from __future__ import annotations

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import EncodedExamples
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import example_gradients, gradient_sum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context, subspace_basis
from ifedicl.kinds.classify import Task
from ifedicl.settings import Method
from tests.support import tiny


def _setting(
    backbone: Backbone, task: Task, rank: int, first: int, loss: str
) -> tuple[Scorer, EncodedExamples, Context, Coefficients, Method]:
    scorer = Scorer(backbone, task, first_layer=first)
    rows = tiny.examples(5, task=task)
    prompts, labels = scorer.encoder.prompts([row.text for row in rows]), [task.index(row.label) for row in rows]
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((backbone.layers, 2, backbone.width)).astype(np.float32)
    basis = subspace_basis(draw.standard_normal((0, *vectors.shape)), rank, draw) if rank else None
    form = Form(backbone.layers, rank)
    start = Coefficients.identity(form)
    start.scales[first:] = 0.2, 0.9
    if rank:
        assert start.core is not None
        start.core[first:] = 0.1 * draw.standard_normal(start.core[first:].shape)
    method = tiny.method(calibration={"loss": loss}, injection={"from_depth": first / backbone.layers})
    return scorer, EncodedExamples(prompts, tuple(labels)), Context(vectors, basis), start, method


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize(
    ("task", "loss", "first"),
    [
        (tiny.TASK, "labels", 0),
        (tiny.TASK, "vocabulary", 1),
        (tiny.MANY_TOKENS, "labels", 0),
        (tiny.MANY_TOKENS, "vocabulary", 0),
    ],
)
def test_rows_of_one_pass_give_what_each_gives_alone(backbone: Backbone, task: Task, loss: str, first: int, rank: int) -> None:
    setting = _setting(backbone, task, rank, first, loss)
    seen = set()
    for rows, arrays in example_gradients(*setting, range(5)):
        seen.update(rows)
        for place, row in enumerate(rows):
            alone = gradient_sum(*setting, [row])
            assert set(arrays) == set(alone.arrays)
            for name, array in alone.arrays.items():
                np.testing.assert_allclose(arrays[name][place], array, rtol=2e-4, atol=2e-5)
                assert name != "scales" or np.abs(array).max() > 1e-3
    assert seen == set(range(5))


@pytest.mark.parametrize("family", ["opt", "gpt_neox-parallel", "gemma2"])
def test_other_families_too(family: str) -> None:
    setting = _setting(tiny.family_backbone(family), tiny.TASK, 0, 0, "labels")
    for rows, arrays in example_gradients(*setting, range(5)):
        whole = gradient_sum(*setting, rows)
        np.testing.assert_allclose(arrays["scales"].sum(axis=0), whole.arrays["scales"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("first", [0, 1])
def test_alone_no_other_example_changes_a_bit(backbone: Backbone, first: int) -> None:
    setting = _setting(backbone, tiny.MANY_TOKENS, 3, first, "labels")
    found = {rows[0]: arrays for rows, arrays in example_gradients(*setting, range(5), alone=True) if len(rows) == 1}
    assert list(found) == list(range(5))
    for row in (3, 0, 4):
        fresh = _setting(backbone, tiny.MANY_TOKENS, 3, first, "labels")
        ((rows, arrays),) = example_gradients(*fresh, [row], alone=True)
        assert rows == [row]
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, found[row][name])
