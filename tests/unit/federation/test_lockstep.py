"""Clients that share passes, each row with its own client's coefficients, against clients one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl.adapter import Adapter
from ifedicl.backbone import lockstep as room
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lockstep import Lockstep, Share
from ifedicl.backbone.losses import LABELS
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, LocalUpdate, calibrate
from ifedicl.core.coefficients import Form, cold_start
from ifedicl.core.subspace import Context
from ifedicl.errors import FederationError
from ifedicl.federation.client import Client
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import UpdateRequest
from ifedicl.kinds.classify import Task
from ifedicl.runs import Federated, RunOptions, federate, simulate
from ifedicl.settings import Coordination, Method, ModelSettings
from tests.support import tiny
from tests.support.dispatched import Dispatched, deep_backbone

SIZES = {"a": 9, "b": 3, "c": 11, "d": 6}
METHOD = tiny.method(rounds={"rounds": 2, "select_by": "last"}, calibration={"batch_size": 4, "local_steps": 3})


def _federated(backbone: Backbone, most: int, method: Method = METHOD, task: Task = tiny.TASK, **options: Any) -> Federated:
    hands = {name: tiny.examples(count, task=task, seed=seed) for seed, (name, count) in enumerate(SIZES.items())}
    options = {"options": RunOptions(Coordination(clients_in_a_pass=most)), **options}
    backbone = replace(backbone, fingerprint="0" * 64)
    return federate(simulate(backbone, task, hands), ModelSettings(source="tiny"), task, method, **options)


def _assert_close(ours: Adapter, theirs: Adapter) -> None:
    assert not theirs.coefficients.is_identity
    for name, array in theirs.coefficients.arrays.items():
        np.testing.assert_allclose(ours.coefficients.arrays[name], array, atol=2e-3)


# OPT's MLP sees all tokens of all rows as one sequence.
@pytest.mark.parametrize(("case", "most"), [("llama", 3), ("llama", 10), ("opt", 4)])
def test_an_adapter_of_clients_in_lockstep_is_that_of_clients_in_turn(case: str, most: int) -> None:
    backbone = tiny.family_backbone(case)
    method = METHOD.model_copy(update={"calibration": METHOD.calibration.model_copy(update={"learning_rate": 0.01})})
    _assert_close(_federated(backbone, most, method).adapter, _federated(backbone, 1, method).adapter)


@pytest.mark.parametrize(
    ("task", "sections"),
    [
        (tiny.MANY_TOKENS, {"calibration": {"loss": "vocabulary"}}),
        (tiny.MANY_TOKENS, {"subspace": {"rank": 3}, "injection": {"from_depth": 0.4}}),
        (tiny.TASK, {"subspace": {"rank": 3}}),
    ],
)
def test_other_losses_words_and_layers_too(task: Task, sections: dict[str, Any]) -> None:
    backbone = tiny.family_backbone("llama")
    small = {"batch_size": 4, "local_steps": 2, "learning_rate": 0.01, **sections.pop("calibration", {})}
    method = tiny.method(rounds={"rounds": 2, "select_by": "last"}, calibration=small, **sections)
    _assert_close(_federated(backbone, 4, method, task).adapter, _federated(backbone, 1, method, task).adapter)


def test_the_same_clients_meet_whichever_thread_is_fast(backbone: Backbone) -> None:
    first, second = (_federated(backbone, 4).adapter for _ in range(2))
    for name, array in first.coefficients.arrays.items():
        np.testing.assert_array_equal(second.coefficients.arrays[name], array)


@pytest.mark.parametrize(
    ("case", "task", "rank", "diverges"),
    [("llama", tiny.TASK, 0, False), ("opt", tiny.MANY_TOKENS, 3, False), ("llama", tiny.TASK, 0, True)],
    ids=["scalars", "subspace", "a client diverges"],
)
def test_each_client_moves_its_own_coefficients_on_its_own_rows(case: str, task: Task, rank: int, diverges: bool) -> None:
    backbone, draw = tiny.family_backbone(case), np.random.default_rng(0)
    basis = np.linalg.qr(draw.normal(size=(3, 2, 32, rank)))[0].swapaxes(2, 3).astype(np.float32) if rank else None
    context = Context(draw.normal(size=(3, 2, 32)).astype(np.float32), None if basis is None else np.ascontiguousarray(basis))
    scorer, form, lockstep = Scorer(backbone, task), Form(3, rank), Lockstep()
    starts = [cold_start(form, METHOD.injection.model_copy(update={"context_scale": 0.1 * place})) for place in range(4)]
    owned = [scorer.encoded(tiny.examples(4 + 3 * place, task=task, seed=place)) for place in range(4)]

    def updated(place: int, together: Lockstep | None) -> LocalUpdate:
        turn = ClientRound(f"client {place}", round=0, phase_start=0, phase_rounds=2)
        return calibrate(scorer, owned[place], context, starts[place], METHOD, turn, lockstep=together)

    if diverges:
        starts[1].scales[0, 0] = np.inf

    def member(place: int) -> LocalUpdate:
        with lockstep.member(place):
            return updated(place, lockstep)

    lockstep.begin(4)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(member, range(4)))
    assert together[1].coefficients.is_finite is not diverges
    for place, update in enumerate(together):
        if place == 1 and diverges:
            continue
        alone = updated(place, None)
        assert update.loss == pytest.approx(alone.loss, rel=1e-5)
        for name, array in alone.coefficients.arrays.items():
            np.testing.assert_allclose(update.coefficients.arrays[name], array, atol=2e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_ten_clients_dispatch_hardly_more_than_one(family: str) -> None:
    backbone = deep_backbone(family)
    scorer, draw = Scorer(backbone, tiny.TASK), np.random.default_rng(0)
    examples, shape = scorer.encoded(tiny.examples(40)), (backbone.layers, 2)
    context = Context(draw.normal(size=(*shape, 32)).astype(np.float32)).on(backbone.device)
    active = np.ones(shape, dtype=np.bool_)

    def operations(clients: int) -> int:
        def share(client: int) -> Share:
            values = {"scales": torch.tensor([0.1, 1.0]).repeat(*shape, 1).requires_grad_()}
            rows = slice(4 * client, 4 * client + 4)
            texts, labels = examples.prompts.tokens[rows], examples.labels[rows]
            return Share(scorer, LABELS, context, "", values, active, texts, labels, 0.25)

        shares = [share(client) for client in range(clients)]
        with Dispatched() as seen:
            room._run(shares)
        assert all(each.loss > 0 for each in shares)
        return int(seen.launches.total())

    operations(1)  # transformers keeps some tensors of its first pass
    assert operations(10) <= 1.1 * operations(1)


def _passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients share each pass."""
    seen: list[int] = []
    run = room._run

    def counting(shares: Sequence[Share]) -> None:
        seen.append(len(shares))
        run(shares)

    monkeypatch.setattr(room, "_run", counting)
    return seen


def test_all_that_still_compute_share_each_pass(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _passes(monkeypatch)
    _federated(backbone, 4)
    assert Counter(seen) == {4: 2 * 3}, "two rounds of three steps"
    seen.clear()
    _federated(backbone, 3)
    assert Counter(seen) == {3: 2 * 3, 1: 2 * 3}, "three and one"
    seen.clear()
    _federated(backbone, 1)
    assert not seen, "off"


def test_memory_bounds_a_shared_pass_too(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _passes(monkeypatch)
    _federated(replace(backbone, trained_tokens=200), 4)
    assert 1 <= max(seen) < 4


@pytest.mark.mistake
def test_a_client_that_fails_leaves_the_others_going(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    update, seen = Client._update, _passes(monkeypatch)

    def failing(self: Client, request: Any) -> Any:
        if self.name == "b":
            raise RuntimeError("of the test")
        return update(self, request)

    monkeypatch.setitem(Client._HANDLERS, UpdateRequest, failing)
    federated = _federated(backbone, 4)
    assert set(seen) == {3}
    assert not federated.adapter.coefficients.is_identity


@pytest.mark.mistake
def test_a_pass_that_fails_fails_for_each_of_its_clients(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any) -> Any:
        raise RuntimeError("of the test")

    monkeypatch.setattr(Scorer, "losses", broken)
    monkeypatch.setattr(room, "_losses", broken)
    with pytest.raises(FederationError):
        _federated(backbone, 4)


def test_a_thread_that_is_no_member_runs_alone(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _passes(monkeypatch)
    hands = {"a": tiny.examples(6), "b": tiny.examples(6, seed=1)}
    lockstep = Lockstep()
    clients = simulate(backbone, tiny.TASK, hands)

    def engine(endpoints: Any) -> LocalEngine:
        for endpoint in endpoints:
            endpoint.client.lockstep = lockstep
        return LocalEngine(endpoints)  # takes turns: no group was begun

    federate(clients, ModelSettings(source="tiny"), tiny.TASK, METHOD, engine=engine)
    assert set(seen) == {1}
