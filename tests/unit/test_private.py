"""A client under differential privacy clips its gradients, adds noise, accounts for both and sends nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.calibrate import example_gradients
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.subspace import Context
from ifedicl.data import Role
from ifedicl.dp.accountant import epsilon
from ifedicl.errors import ConfigError
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.handler import Replier
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import (
    BeginRequest,
    CompareRequest,
    EvaluateRequest,
    Failure,
    FailureCode,
    GradientReply,
    GradientRequest,
    JobReply,
    JobRequest,
    NoisyStatisticsRequest,
    Request,
    StatisticsRequest,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
    encode,
)
from ifedicl.federation.secure.sum_client import identity_of
from ifedicl.ledger.usage import CountedLedger
from ifedicl.owner.endpoint import LedgerRecord, build_endpoint
from ifedicl.owner.guard import Guard
from ifedicl.owner.policy import open_policy
from ifedicl.owner.recorder import Recorder
from ifedicl.settings import Method
from tests.support import tiny
from tests.support.endpoints import Asked, engine_of, secure_layer
from tests.support.jobs import context_of, job_of
from tests.support.private import PUBLIC, STEP, dp_sums, method, private_client, private_clients, private_method, sums_in


def ready(ward: Replier, backbone: Backbone, run: Method) -> GradientRequest:
    """Job, stage 1 and the global vectors; the request for the first round."""
    job = job_of(run, backbone)
    assert ward.handle(JobRequest(job)) == JobReply()
    reply = ward.handle(VectorsRequest(job.digest, ""))
    assert isinstance(reply, VectorsReply)
    request = context_of(job, Context(reply.vectors.mean().astype(np.float32), first_layer=job.layers.start))
    ward.handle(request)
    return GradientRequest(request.context_id, 0, job.initial)


def asked(ward: Replier, request: GradientRequest) -> GradientSum:
    reply = ward.handle(request)
    assert isinstance(reply, GradientReply), reply
    return reply.sums


def test_vectors_are_those_of_public_text_whoever_is_asked(backbone: Backbone) -> None:
    run = private_method()
    replies = []
    for ward in private_clients(backbone):
        ready(ward, backbone, run)
        reply = ward.handle(VectorsRequest(job_of(run, backbone).digest, ""))
        assert isinstance(reply, VectorsReply)
        replies.append(reply)
    for reply in replies[1:]:
        np.testing.assert_array_equal(reply.vectors.means, replies[0].vectors.means)
        np.testing.assert_array_equal(reply.vectors.counts, [len(PUBLIC)])


def test_a_gradient_sum_is_that_of_clipped_examples_and_says_nothing_else(backbone: Backbone) -> None:
    run = private_method(privacy={"noise": {"clip": 0.3}})
    ward = private_clients(backbone)[0]
    request = ready(ward, backbone, run)
    sums = asked(ward, request)
    assert (sums.examples, sums.loss) == (0, 0.0)
    sums_of_job = sums_in(ward)
    bound = sums_of_job.plan.by_kind["gradient"].bound
    job, context = ward._in_context
    part, total = job.part(Role.TRAIN), np.zeros(len(context.layers) * 4)
    rows = range(len(part.labels))
    clipped = 0
    for _, arrays in example_gradients(job.scorer, part, context, request.coefficients, run, rows):
        for gradient in arrays["scales"]:
            row = (gradient * sums_of_job._weights[context.digest]["scales"]).ravel()
            length = float(np.linalg.norm(row))
            clipped += length > bound.clip
            total += row * min(1.0, bound.clip / length)
    assert clipped > 0
    np.testing.assert_allclose(sums.arrays["scales"].ravel(), total, atol=5 * bound.step)
    assert sums.arrays["scales"].any()


def test_noise_is_on_what_depends_on_examples_and_only_there(backbone: Backbone) -> None:
    run = private_method()
    ward = private_clients(backbone)[0]
    asked(ward, ready(ward, backbone, run))
    layers = len(run.injection.active_layers(backbone.layers))
    noise = ward.noise("gradient", 2 + layers * 4)
    assert not noise[:2].any()
    assert np.count_nonzero(noise[2:]) > 0.7 * (noise.size - 2)
    assert not ward.noise("vectors", 10).any()
    assert not np.array_equal(noise, ward.noise("gradient", len(noise)))


def test_the_noise_of_the_fewest_survivors_is_what_the_promise_asks_for(backbone: Backbone) -> None:
    run = private_method()
    ward = private_clients(backbone)[0]
    asked(ward, ready(ward, backbone, run))
    bound, release = sums_in(ward).plan.by_kind["gradient"].bound, sums_in(ward).plan.by_kind["gradient"].release
    size = 2 + bound.size
    drawn = np.stack([ward.noise("gradient", size)[2:] for _ in range(800)])
    noise = drawn * STEP / bound.step
    # Three survivors of whom one colludes: two shares are the whole.
    assert 2 * noise.var() == pytest.approx(release.variance, rel=0.06)
    assert epsilon([release] * 3, 1e-5) == pytest.approx(2.0, rel=1e-3)


def test_the_budget_ends_a_client_after_the_rounds_that_were_promised(backbone: Backbone) -> None:
    run = private_method(privacy={"noise": {"epsilon": 1.0}})
    ward = private_clients(backbone)[0]
    request = ready(ward, backbone, run)
    for _ in range(3):
        asked(ward, request)
    assert ward.spent_epsilon is not None
    assert 0.99 < ward.spent_epsilon <= 1.0
    reply = ward.handle(request)
    assert isinstance(reply, Failure)
    assert ward.spent_epsilon <= 1.0


def test_a_budget_that_an_earlier_run_spent_is_not_there_again(backbone: Backbone) -> None:
    run = private_method(privacy={"noise": {"epsilon": 1.0}})
    ward = private_client(backbone, tiny.examples(5), answered={"gradient": 3})
    assert ward.handle(ready(ward, backbone, run)) == Failure(FailureCode.SPENT)


def test_what_no_noise_is_planned_for_is_refused(backbone: Backbone) -> None:
    ward = private_clients(backbone)[0]
    first = ready(ward, backbone, private_method())
    name, start = first.context_id, first.coefficients
    requests: list[Request] = [
        UpdateRequest(name, 0, 0, 3, start),
        EvaluateRequest(name, start),
        StatisticsRequest(name, start),
        NoisyStatisticsRequest(name, start),
        CompareRequest(name, start, None),
    ]
    for request in requests:
        assert ward.handle(request) == Failure(FailureCode.BAD_REQUEST)
    with pytest.raises(KeyError):
        ward.noise("gradient", 10)
    with pytest.raises(KeyError):
        ward.noise("update", 10)


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"server": {"update": "local"}}, "server.update"),
        ({"server": {"optimizer": "momentum"}}, "server.optimizer"),
        ({"rounds": {"select_by": "loss"}, "holdout": {"selection": 0.2}}, "rounds.select_by"),
    ],
)
def test_settings_that_guarantee_nothing_are_refused(backbone: Backbone, sections: dict[str, Any], field: str) -> None:
    job = job_of(private_method(), backbone)
    changed = {name: getattr(job.method, name).model_copy(update=section) for name, section in sections.items()}
    contradictory = Manifest(job.task, job.method.model_copy(update=changed), job.model, job.limits)
    with pytest.raises(ConfigError, match=field):
        dp_sums(contradictory)


def test_without_public_text_there_is_no_noise_to_scale(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"data\.public: received 1 texts"):
        dp_sums(job_of(private_method(), backbone), PUBLIC[:1])


@pytest.mark.parametrize("rank", [0, 2])
def test_a_federation_runs_on_what_private_clients_send(backbone: Backbone, rank: int) -> None:
    subspace = {"subspace": {"rank": rank}} if rank else {}
    run = private_method(**subspace)
    clients = private_clients(backbone)
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    outcome = Coordinator(engine_of(clients), tiny.TASK, run, shape).run()
    assert outcome.chosen_round == 3
    assert not outcome.coefficients.is_identity
    assert not any(exchange.failure for exchange in outcome.state.traffic)


def test_an_owners_limit_of_epsilon_stops_its_client(backbone: Backbone, tmp_path: Path) -> None:
    run, policy = private_method(), open_policy()
    limited = policy.model_copy(update={"most": policy.most.model_copy(update={"epsilon": 1.5})})
    ward = private_clients(backbone)[0]
    ledger = CountedLedger(tmp_path / "ledger.jsonl", ward.name)
    guarded = Asked(Recorder(Guard(ward, limited, ledger.history, masked=True), ledger, limited))
    request = ready(guarded, backbone, run)
    answers = [guarded.handle(request) for _ in range(3)]
    assert isinstance(answers[0], GradientReply)
    assert [reply.code for reply in answers if isinstance(reply, Failure)] == [FailureCode.SPENT] * 2
    # Without a promise nothing leaves at all.
    plain = Client("plain", tiny.examples(5), backbone, secret=b"p")
    open_guard = Asked(build_endpoint(plain, limited, LedgerRecord(CountedLedger(tmp_path / "plain.jsonl", "plain")), None, {}))
    assert open_guard.handle(JobRequest(job_of(method(), backbone))) == Failure(FailureCode.REFUSED)


def test_a_clip_that_the_sum_cannot_resolve_lets_nothing_out(backbone: Backbone) -> None:
    run, ward = private_method(privacy={"noise": {"clip": 1e-6}}), private_clients(backbone)[0]
    assert ward.handle(JobRequest(job_of(run, backbone))) == Failure(FailureCode.OTHER_MODE)


def test_a_client_that_cannot_keep_the_promise_refuses_the_job(backbone: Backbone) -> None:
    run = private_method()
    assert run.privacy is not None
    plain, job = Client("plain", tiny.examples(8), backbone, secret=b"p"), job_of(run, backbone)
    assert plain.handle(JobRequest(job)) == Failure(FailureCode.OTHER_MODE)
    assert plain.handle(VectorsRequest(job.digest, "")) == Failure(FailureCode.NO_CONTEXT)
    masking = secure_layer(plain, {"plain": identity_of(plain).public}, run.privacy.model_copy(update={"noise": None}))
    assert masking.handle(JobRequest(job)).reply == Failure(FailureCode.OTHER_MODE)
    begin = BeginRequest(bytes(16), encode(VectorsRequest(job.digest, "")))
    assert masking.handle(begin).reply == Failure(FailureCode.NO_CONTEXT)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_half_precision_answers_nothing_and_spends_nothing(llama_folder: Path, dtype: str) -> None:
    """In bfloat16 the examples of one pass change each other's gradients by a part of the sensitivity."""
    run, half = private_method(), tiny.load(llama_folder, dtype=dtype)
    job, ward = job_of(run, half), private_clients(half)[0]
    assert ward.handle(JobRequest(job)) == Failure(FailureCode.OTHER_MODE)
    for request in (VectorsRequest(job.digest, ""), GradientRequest("0" * 32, 0, job.initial)):
        assert ward.handle(request) == Failure(FailureCode.NO_CONTEXT)
    full = tiny.load(llama_folder, dtype="float32")
    assert private_clients(full)[0].handle(JobRequest(job_of(run, full))) == JobReply()


def test_an_owner_asks_for_its_own_noise_or_more(backbone: Backbone) -> None:
    """Of its own ε is 1; the first job's is 2, the second's sums have no noise."""
    own = private_method(privacy={"noise": {"epsilon": 1.0}})
    assert own.privacy is not None
    ward = private_clients(backbone)[0]
    masking = secure_layer(ward, {ward.name: identity_of(ward).public}, own.privacy, ward, ward)
    for run in (private_method(), private_method(privacy={"mode": "secure", "noise": None})):
        assert masking.handle(JobRequest(job_of(run, backbone))).reply == Failure(FailureCode.OTHER_MODE)
    assert masking.handle(JobRequest(job_of(own, backbone))).reply == JobReply()
