"""An update that is one example's gradient: by decay, by steps of one example, by directions that the job does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ifedicl import calibrate
from ifedicl.backbone.load import Backbone
from ifedicl.calibrate import ClientRound, batches_of, gradient_sum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.data import Role
from ifedicl.errors import ConfigError, MessageError
from ifedicl.federation.client_keys import order_seed
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import (
    Failure,
    FailureCode,
    JobRequest,
    UpdateReply,
    UpdateRequest,
    decode_request,
    encode,
    pack,
    unpack,
)
from tests.support import tiny
from tests.support.attacker import (
    TRAINED,
    client_behind,
    code,
    cosine,
    default_rules,
    flat,
    job,
    ones,
    owner,
    place_of,
    unchecked,
)

RATE, STEPS = 1e-4, 8
WIPED = {"batch_size": 1, "local_steps": STEPS, "learning_rate": RATE, "weight_decay": 1 / RATE, "schedule": "constant"}


class _Sgd(torch.optim.SGD):
    """Another optimizer with decoupled decay: what AdamW would be without its moments."""

    def __init__(self, parameters: list[torch.Tensor], rate: float, weight_decay: float, fused: bool) -> None:
        super().__init__(parameters, rate, weight_decay=weight_decay, fused=fused)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_decay_that_wipes_out_the_earlier_steps_is_refused(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    if optimizer == "SGD":
        monkeypatch.setattr(calibrate, "AdamW", _Sgd)
    hostile, victim = unchecked(TRAINED, **WIPED), owner(backbone, tmp_path)
    assert code(victim.begin(job(backbone))) is None
    own, context = client_behind(victim)._in_context
    examples, start = own.part(Role.TRAIN), Coefficients.identity(Form(backbone.layers))
    # Without the defence: of eight steps, only the last one is in the update.
    update = calibrate.calibrate(own.scorer, examples, context, start, hostile, ClientRound("clinic", 0, 0, 3))
    (last,) = batches_of(0, STEPS, len(examples.labels), 1, hostile.seed, "clinic")[-1]
    alone = gradient_sum(own.scorer, examples, context, start, hostile, [last])
    change = flat(update.coefficients) - flat(start)
    if optimizer == "SGD":
        assert cosine(-change, flat(Coefficients.of(alone.arrays))) > 0.999
    else:  # a step of AdamW has at most about the length of the rate: seven of eight are gone
        assert np.abs(change).max() < 2 * RATE
    # With it: no such job can be written, read or sent.
    with pytest.raises(ConfigError, match="wipes out"):
        Manifest.from_json(json.loads(json.dumps(job(backbone, hostile).to_json())))
    with pytest.raises(MessageError):
        decode_request(encode(JobRequest(job(backbone, hostile))))
    frame = encode(JobRequest(job(backbone, hostile)))
    flare = owner(backbone, tmp_path, name="ward", over_flare=True)
    assert code(flare.send(b"IFCL\x03\x00" + frame)) is FailureCode.BAD_REQUEST


def test_steps_of_one_example_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    single = tiny.method(calibration={"batch_size": 1, "local_steps": 8})
    lenient = owner(backbone, tmp_path, name="lenient", policy=default_rules(least={"step": 1}))
    hostile = job(backbone, single)
    assert code(lenient.begin(hostile)) is None
    request = UpdateRequest(place_of(hostile), 0, 0, 2, hostile.identity)
    assert isinstance(lenient.handle(request), UpdateReply)  # without the defence
    victim = owner(backbone, tmp_path)
    assert code(victim.begin(hostile)) is FailureCode.REFUSED
    assert isinstance(victim.handle(request), Failure)


def test_an_owner_with_fewer_examples_than_a_step_needs_sends_no_update(backbone: Backbone, tmp_path: Path) -> None:
    few = tuple(tiny.examples(9))
    request_of = job(backbone, tiny.method(calibration={"batch_size": 4, "local_steps": 4}, holdout={"selection": 0.0}))
    request = UpdateRequest(place_of(request_of), 0, 0, 2, request_of.identity)
    for count, wanted in ((9, None), (7, FailureCode.TOO_FEW)):
        victim = owner(backbone, tmp_path, name=f"of-{count}", examples=few[:count])
        assert code(victim.begin(request_of)) is None
        assert code(victim.handle(request)) is wanted


@given(st.integers(0, 50), st.integers(1, 12), st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))
@settings(deadline=None, derandomize=True)
def test_the_steps_of_an_update_mix_as_many_examples_as_the_rules_count(
    update: int, steps: int, examples: int, size: int, seed: int
) -> None:
    """Whatever seed and round a coordinator names: no example counts twice."""
    batches = batches_of(update, steps, examples, size, seed, "clinic")
    assert len(batches) == steps
    assert all(len(set(batch)) == len(batch) == min(size, examples) for batch in batches)
    assert len({row for batch in batches for row in batch}) == min(examples, steps * min(size, examples))


@pytest.mark.mistake
def test_two_jobs_whose_steps_differ_by_one_example_share_no_order(backbone: Backbone, tmp_path: Path) -> None:
    """With the job's seed, the difference of both updates was one example's gradient."""

    def step_of(size: int, *, defended: bool) -> set[int]:
        method = tiny.method(calibration={"batch_size": size, "local_steps": 1})
        victim = owner(backbone, tmp_path, name=f"of-{size}-{defended}")
        client = client_behind(victim)
        seen: list[ClientRound] = []
        with pytest.MonkeyPatch.context() as patch:

            def stop(*asked: Any, **_: object) -> None:
                seen.append(asked[-1])
                raise RuntimeError

            patch.setattr("ifedicl.federation.client.calibrate", stop)
            assert code(victim.begin(job(backbone, method))) is None
            request = UpdateRequest(place_of(job(backbone, method)), 0, 0, 2, job(backbone, method).identity)
            assert isinstance(victim.handle(request), Failure)
        seed = seen[0].order if defended else method.seed
        assert seed is not None
        count = len(client._in_job.keys(Role.TRAIN))
        return set(batches_of(0, 1, count, size, seed, "clinic")[0])

    small, large = step_of(8, defended=False), step_of(9, defended=False)
    assert len(large - small) == 1
    assert small < large
    small, large = step_of(8, defended=True), step_of(9, defended=True)
    assert len(large - small) > 1


def test_the_coordinator_does_not_know_the_order_of_the_examples(backbone: Backbone, tmp_path: Path) -> None:
    """Two owners with the same number of examples, and one job: each has an order of its own, which its secret gives."""
    orders = set()
    for name in ("north", "south"):
        client = client_behind(owner(backbone, tmp_path, name=name))
        orders.add(order_seed(client._split_key, TRAINED))
        assert order_seed(client._split_key, TRAINED) == order_seed(client._split_key, TRAINED.model_copy(update={"seed": 5}))
    assert len(orders) == 2
    assert None not in orders


@pytest.mark.parametrize("rank", [1, 8])
def test_directions_that_the_job_does_not_have_are_refused(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    manifest = job(backbone)
    start = Coefficients.identity(Form(backbone.layers, rank))
    request = UpdateRequest(place_of(manifest, rank), 0, 0, 3, start)
    victim = owner(backbone, tmp_path)
    assert code(victim.begin(manifest, ones(manifest, rank))) is FailureCode.BAD_REQUEST
    assert code(victim.handle(request)) is FailureCode.NO_CONTEXT
    assert code(victim.begin(manifest)) is None
    assert code(victim.handle(UpdateRequest(place_of(manifest), 0, 0, 3, start))) is FailureCode.BAD_REQUEST
    monkeypatch.setattr("ifedicl.federation.client.RequestChecks.fits", lambda _checks, _request: True)
    bare = owner(backbone, tmp_path, name="bare")  # without the defence
    assert code(bare.begin(manifest, ones(manifest, rank))) is None
    reply = bare.handle(request)
    assert isinstance(reply, UpdateReply)
    assert reply.coefficients.core is not None
    assert reply.coefficients.core.any()


@pytest.mark.parametrize("change", ["skewed", "long"])
def test_a_basis_that_is_not_orthonormal_is_refused(backbone: Backbone, tmp_path: Path, change: str) -> None:
    manifest = job(backbone, tiny.method(subspace={"rank": 2}, calibration={"batch_size": 4, "local_steps": 4}))
    victim = owner(backbone, tmp_path, policy=default_rules(allow={"class_counts": True}))
    context = ones(manifest, 2)
    assert code(victim.begin(manifest, context)) is None
    assert context.basis is not None
    if change == "skewed":
        context.basis[:, :, 1] = context.basis[:, :, 0]  # Γ would be read twice along one direction
    else:
        context.basis[:] *= 100
    assert code(victim.begin(manifest, ones(manifest, 2))) is None
    assert code(victim.begin(manifest, context)) is FailureCode.BAD_REQUEST


def test_a_job_that_names_another_optimizer_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    kind, header, _ = unpack(encode(JobRequest(job(backbone))))
    header["manifest"]["method"]["calibration"]["optimizer"] = "sgd"
    victim = owner(backbone, tmp_path, over_flare=True)
    assert code(victim.send(b"IFCL\x03\x00" + pack(kind, header, {}))) is FailureCode.BAD_REQUEST
