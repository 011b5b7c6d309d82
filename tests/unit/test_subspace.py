"""The context subspace: its basis, where it comes from, and what it is worth through a whole federation."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.core.subspace import Context, subspace_basis
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Role, split_roles
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.runs import federate, simulate, zero_shot_adapter
from ifedicl.settings import ModelSettings
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.local_runs import HANDS, assert_same_result, real, run_real, shape_of


def _draw() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_basis_holds_the_leading_directions_in_their_order() -> None:
    means = np.zeros((3, 1, 2, 5))
    means[0, ..., 1], means[1, ..., 3] = 9.0, 2.0  # differences along the second and the fourth coordinate
    basis = subspace_basis(means + 100.0, 2, _draw())
    assert basis.shape == (1, 2, 2, 5)
    np.testing.assert_allclose(basis[0, 0] @ basis[0, 0].T, np.eye(2), atol=1e-6)
    assert np.abs(basis[0, 0, 0]).argmax() == 1
    assert np.abs(basis[0, 0, 1]).argmax() == 3
    assert np.abs(basis[..., [0, 2, 4]]).max() < 1e-6, "what all means share is no direction"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_directions_that_the_means_lack_are_drawn_and_orthogonal(count: int) -> None:
    means = _draw().normal(size=(count, 2, 2, 16))
    basis = subspace_basis(means, 6, _draw()).astype(np.float64)
    np.testing.assert_allclose(basis @ basis.swapaxes(2, 3), np.broadcast_to(np.eye(6), (2, 2, 6, 6)), atol=1e-5)
    if count > 1:
        centred = means[:, 1, 0] - means[:, 1, 0].mean(axis=0)
        np.testing.assert_allclose(centred @ basis[1, 0].T @ basis[1, 0], centred, atol=1e-5)


def test_the_signs_of_the_basis_do_not_depend_on_those_of_the_decomposition() -> None:
    means = _draw().normal(size=(5, 1, 2, 8))
    np.testing.assert_allclose(subspace_basis(means, 3, _draw()), subspace_basis(-means, 3, _draw()), atol=1e-6)


@pytest.mark.parametrize("basis", [np.zeros((2, 2, 3, 7), "f4"), np.zeros((2, 2, 8), "f4"), np.zeros((2, 2, 3, 8))])
def test_a_basis_that_does_not_fit_the_vectors_is_refused(basis: Any) -> None:
    with pytest.raises(ValueError, match="basis"):
        Context(np.zeros((2, 2, 8), "f4"), basis)


def test_one_group_holds_the_examples_of_all_classes() -> None:
    vectors = ContextVectors.from_wire(_draw().normal(size=(3, 1, 2, 4)), np.array([2, 0, 5]))
    merged = vectors.merged()
    assert merged.counts.tolist() == [7]
    np.testing.assert_allclose(merged.means[0], (2 * vectors.means[0] + 5 * vectors.means[2]) / 7, rtol=1e-6)


def _run(backbone: Backbone, **values: Any) -> Outcome:
    method = {"rounds": {"rounds": 3}, "subspace": {"rank": 4}, **values}
    return run_real(backbone, tiny.method(**method))


def test_a_federation_calibrates_the_core(backbone: Backbone) -> None:
    long = {"calibration": {"local_steps": 4, "batch_size": 8, "learning_rate": 0.2}, "rounds": {"rounds": 3}}
    outcome = _run(backbone, **long)
    assert outcome.context.rank == 4
    core = outcome.state.coefficients.core
    assert core is not None
    assert np.abs(core).max() > 1e-3
    losses = [record.train_loss or 0.0 for record in outcome.state.history]
    assert losses[-1] < losses[0]
    assert_same_result(outcome, _run(backbone, **long))


def test_the_scalars_are_the_core_that_is_not_there(backbone: Backbone) -> None:
    plain = run_real(backbone, tiny.method(rounds={"rounds": 1}))
    assert plain.state.coefficients.core is None
    assert plain.context.basis is None


def test_more_rounds_keep_the_basis(backbone: Backbone, tmp_path: Path) -> None:
    method = tiny.method(rounds={"rounds": 2}, subspace={"rank": 4})
    file = tmp_path / "state"
    before = Coordinator(engine_of(real(backbone)), tiny.TASK, method, shape_of(backbone), checkpoint_file=file).run()
    grown = real(backbone, {name: (*own, *tiny.examples(6, seed=9)) for name, own in HANDS.items()})
    after = Coordinator(engine_of(grown), tiny.TASK, method, shape_of(backbone), checkpoint_file=file).run(more_rounds=1)
    assert not np.array_equal(before.context.vectors, after.context.vectors)
    assert before.context.basis is not None
    assert after.context.basis is not None
    np.testing.assert_array_equal(before.context.basis, after.context.basis)


def test_held_out_examples_are_in_no_mean(backbone: Backbone) -> None:
    method = tiny.method(subspace={"rank": 4})
    outcome = run_real(backbone, method)
    for client in real(backbone):
        train = split_roles(client.examples, selection=method.holdout.selection, gate=0.0, seed=method.seed)[Role.TRAIN]
        assert outcome.state.client_vectors[client.name].examples == len(train)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt"])
def test_families_other_than_llama_run_end_to_end(name: str, tmp_path: Path) -> None:
    """All forms at once, from stage 1 to an adapter that is saved, loaded, and labels better than the raw model."""
    family = replace(tiny.family_backbone(name), fingerprint=hashlib.sha256(name.encode()).hexdigest())
    method = tiny.method(
        holdout={"selection": 0.3},
        rounds={"rounds": 6, "select_by": "last"},
        calibration={"local_steps": 4, "batch_size": 8},
        subspace={"rank": 4},
        readout={},
    )
    clients = simulate(family, tiny.TASK, HANDS, seed=0)
    federated = federate(clients, ModelSettings(source=name), tiny.TASK, method)
    history = federated.outcome.state.history
    assert (history[-1].train_loss or 0.0) < (history[0].train_loss or 0.0)
    federated.adapter.save(tmp_path / "adapter")
    rows = [row for own in HANDS.values() for row in split_roles(own, selection=0.3, gate=0.0, seed=0)[Role.TRAIN]]
    learnt = Adapter.load(tmp_path / "adapter").classifier(family).evaluate(rows)
    raw = zero_shot_adapter(family, ModelSettings(source=name), tiny.TASK).classifier(family).evaluate(rows)
    assert learnt.accuracy > raw.accuracy
    assert learnt.loss < raw.loss
    assert learnt.loss == federated.adapter.classifier(family).evaluate(rows).loss
