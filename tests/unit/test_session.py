"""A task request: exact hit, near hit and miss, and what a warm start carries over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ifedicl import runs
from ifedicl.backbone.load import Backbone
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.core.warm_start import Start, projected_core, warm_start
from ifedicl.federation.coordinator import Starter
from ifedicl.kinds.classify import Task
from ifedicl.settings import Method, ModelSettings
from ifedicl.store import open_store, requests
from ifedicl.store.lease import leased
from ifedicl.store.protocol import Store
from ifedicl.store.records import TaskKey
from ifedicl.store.requests import Answer
from ifedicl.store.signature import reference
from tests.support import tiny
from tests.support.private import private_method
from tests.support.store import KEY, adapter, unit

METHOD = tiny.method(rounds={"rounds": 4, "select_by": "last"})  # a calibrated task, whatever the few held-out examples say
RELATED = tiny.TASK.model_copy(update={"name": "weather", "template": "Text: {text}\n\nMood:"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(str(tmp_path / "tasks.sqlite"))
    yield opened
    opened.close()


def ask(
    store: Store, backbone: Backbone, task: Task = tiny.TASK, method: Method = METHOD, *, recalibrate: bool = False
) -> tuple[Answer, runs.Federated | None]:
    """A request with two clients."""
    examples = {"a": tiny.examples(12, task=task), "b": tiny.examples(12, task=task, seed=1)}

    def calibrate(starter: Starter) -> runs.Federated:
        clients = runs.simulate(backbone, task, examples)
        return runs.federate(clients, ModelSettings(source="tiny"), task, method, options=runs.RunOptions(starter=starter))

    key = TaskKey.of("clinics", backbone.fingerprint, task, method)
    return requests.request(store, key, method, calibrate, lambda: reference(backbone, "label"), recalibrate=recalibrate)


def test_a_miss_is_calibrated_and_stored_and_the_next_is_an_exact_hit(store: Store, backbone: Backbone) -> None:
    missed, calibrated = ask(store, backbone)
    assert (missed.found.kind, missed.entry.version) == ("miss", 1)
    assert calibrated is not None
    hit, nothing = ask(store, backbone)
    assert (hit.found.kind, hit.entry.id, nothing) == ("exact", missed.entry.id, None)
    np.testing.assert_array_equal(hit.adapter.coefficients.scales, calibrated.adapter.coefficients.scales)
    new, again = ask(store, backbone, recalibrate=True)
    assert again is not None
    assert new.entry.version == 2


def test_what_promises_noise_is_answered_by_nothing_else_and_begins_cold(store: Store, backbone: Backbone) -> None:
    private = private_method()
    key, open_key = (TaskKey.of("clinics", backbone.fingerprint, tiny.TASK, method) for method in (private, METHOD))
    assert key.digest != open_key.digest
    assert key.scope != open_key.scope
    ask(store, backbone)
    search = requests._Search(store, key, private, lambda: reference(backbone, "label"))
    context = Context(np.ones((backbone.layers, 2, backbone.width), dtype=np.float32))
    assert search.start(context, Coefficients.identity(Form(backbone.layers))) is None
    assert "no warm start" in search.found.why


def test_a_near_task_is_a_warm_start_with_half_the_rounds(store: Store, backbone: Backbone) -> None:
    first, _ = ask(store, backbone)
    near, calibrated = ask(store, backbone, RELATED)
    assert near.found.kind == "near"
    assert near.found.neighbour is not None
    assert near.found.neighbour.entry.id == first.entry.id
    assert "'mood', version 1" in near.found.why
    assert calibrated is not None
    assert calibrated.outcome.state.round == 2


def test_a_far_task_is_a_miss_that_says_why(store: Store, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(store, backbone)
    monkeypatch.setattr(requests, "NEAR", 1.1)
    missed, calibrated = ask(store, backbone, RELATED)
    assert missed.found.kind == "miss"
    assert "the nearest task is 'mood', version 1, at a cosine of" in missed.found.why
    assert calibrated is not None
    assert calibrated.outcome.state.round == 4


def test_two_equal_requests_at_the_same_time_calibrate_once(tmp_path: Path) -> None:
    calibrations: list[int] = []
    both, answers = threading.Barrier(2), []

    def one() -> None:
        own = open_store(str(tmp_path / "tasks.sqlite"))
        both.wait()
        with leased(own, KEY, poll=0.01):
            if requests.exact(own, KEY) is None:
                calibrations.append(1)
                own.put(KEY, adapter(), unit(0))
        answers.append(requests.exact(own, KEY))
        own.close()

    open_store(str(tmp_path / "tasks.sqlite")).close()
    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calibrations == [1]
    assert [answer.entry.version for answer in answers if answer] == [1, 1]


def test_a_core_carried_to_a_basis_of_the_same_directions_does_the_same() -> None:
    draw = np.random.default_rng(0)
    basis = np.linalg.qr(draw.standard_normal((3, 2, 8, 4)))[0].swapaxes(2, 3).astype(np.float32)  # (L, 2, r, d)
    turn = np.linalg.qr(draw.standard_normal((4, 4)))[0].astype(np.float32)
    turned = (turn @ basis).astype(np.float32)
    core = draw.standard_normal((3, 2, 4, 4)).astype(np.float32)
    moved = projected_core(core, basis, turned)

    def whole(core: Array32, basis: Array32) -> Array32:
        return (basis.swapaxes(2, 3) @ core @ basis).astype(np.float32)

    np.testing.assert_allclose(whole(moved, turned), whole(core, basis), atol=1e-5)
    half = projected_core(core, basis, turned[:, :, :2])
    assert np.linalg.norm(half) < np.linalg.norm(core)


def test_a_warm_start_keeps_the_scales_and_says_what_of_the_core_is_left() -> None:
    draw = np.random.default_rng(0)
    basis = np.linalg.qr(draw.standard_normal((3, 2, 8, 4)))[0].swapaxes(2, 3).astype(np.float32)
    vectors = draw.standard_normal((3, 2, 8)).astype(np.float32)
    old = Coefficients(np.full((3, 2, 2), 0.5, dtype=np.float32), np.ones((3, 2, 4, 4), dtype=np.float32))
    start = warm_start(old, Context(vectors, basis), Coefficients.identity(Form(3, 2)), Context(vectors, basis[:, :, :2]), 2)
    assert start.core_kept == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_array_equal(start.coefficients.scales, old.scales)
    without = warm_start(old, Context(vectors, basis), Coefficients.identity(Form(3)), Context(vectors), 2)
    assert (without.coefficients.core, without.core_kept) == (None, None)


def test_a_resumed_run_keeps_its_warm_start(backbone: Backbone, tmp_path: Path) -> None:
    asked: list[Context] = []

    def starter(context: Context, initial: Coefficients) -> Start:
        asked.append(context)
        return Start(Coefficients((initial.scales * np.float32(0.5)).astype(np.float32)), 2)

    clients = runs.simulate(backbone, tiny.TASK, {"a": tiny.examples(12)})
    path, model = tmp_path / "state", ModelSettings(source="tiny")
    first = runs.federate(clients, model, tiny.TASK, METHOD, options=runs.RunOptions(checkpoint=path, starter=starter))
    again = runs.federate(
        clients, model, tiny.TASK, METHOD, options=runs.RunOptions(checkpoint=path, resume=True, starter=starter)
    )
    assert (len(asked), first.outcome.state.round, again.outcome.state.round) == (1, 2, 2)
