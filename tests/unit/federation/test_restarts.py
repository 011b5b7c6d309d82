"""Clients that forget everything between two requests."""

from __future__ import annotations

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.core.subspace import Context
from ifedicl.federation.messages import (
    ContextReply,
    ContextRequest,
    EvaluateRequest,
    Failure,
    FailureCode,
    JobReply,
    JobRequest,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsRequest,
)
from tests.support import tiny
from tests.support.engines import Restarting, once_each
from tests.support.jobs import context_of, job_of
from tests.support.local_runs import SHORT, assert_same_result, failures, real, run_real
from tests.support.scripted import scales


@pytest.mark.parametrize("step", [UpdateRequest, EvaluateRequest])
def test_a_restarted_client_is_sent_the_vectors_again_and_nothing_changes(backbone: Backbone, step: type[Request]) -> None:
    engine = Restarting(real(backbone), lambda name, request: name != "a" and isinstance(request, step))
    # Only the first of each two requests: the second one is the coordinator's second try.
    engine.when = once_each(engine.when)
    method = tiny.method(rounds={"rounds": 2})
    outcome = run_real(backbone, method, engine=engine)
    assert engine.restarts == 4 + 2 * (step is EvaluateRequest)
    assert [code for _, _, code in failures(outcome)].count("no_context") == engine.restarts
    assert_same_result(outcome, run_real(backbone, method))


def test_all_clients_may_restart_before_every_request_but_right_after_a_job(backbone: Backbone) -> None:
    engine = Restarting(real(backbone), once_each(lambda name, request: not isinstance(request, ContextRequest)))
    method = tiny.method(rounds={"rounds": 2})
    outcome = run_real(backbone, method, engine=engine)
    assert {step for _, step, code in failures(outcome) if code == "no_context"} == {"vectors", "evaluate", "update"}
    assert_same_result(outcome, run_real(backbone, method))


def test_a_client_that_restarts_between_job_and_vectors_misses_one_step_only(backbone: Backbone) -> None:
    contexts: list[Request] = []

    def when(name: str, request: Request) -> bool:
        if name == "b" and isinstance(request, ContextRequest):
            contexts.append(request)
            return len(contexts) == 2  # the one that follows the job, sent again because of the restart below
        return name == "b" and isinstance(request, UpdateRequest) and request.round == 0 and len(contexts) == 1

    outcome = run_real(backbone, tiny.method(rounds={"rounds": 2}), engine=Restarting(real(backbone), when))
    assert [record.clients for record in outcome.state.history] == [("a", "c"), ("a", "b", "c")]


def test_a_client_does_not_mix_two_tasks_that_it_serves_in_turn(backbone: Backbone) -> None:
    shape = (backbone.layers, 2, backbone.width)
    other = tiny.TASK.model_copy(update={"template": "Note: {text}\nFeeling:"})
    first, second = job_of(SHORT, backbone), job_of(SHORT, backbone, other)
    install = context_of(first, Context(np.ones(shape, "f4")))
    update = UpdateRequest(install.context_id, 0, 0, 2, scales(0.1, layers=backbone.layers))
    alone, shared = real(backbone)[0], real(backbone)[0]
    for client in (alone, shared):
        assert client.handle(JobRequest(first)) == JobReply()
        assert client.handle(install) == ContextReply()
    assert shared.handle(JobRequest(second)) == JobReply()
    for request in (VectorsRequest(first.digest, ""), install, update):
        assert shared.handle(request) == Failure(FailureCode.NO_CONTEXT)
    assert shared.handle(JobRequest(first)) == JobReply()
    assert shared.handle(update) == Failure(FailureCode.NO_CONTEXT), "the vectors of the first job are gone with it"
    assert shared.handle(install) == ContextReply()
    expected, reply = alone.handle(update), shared.handle(update)
    assert isinstance(expected, UpdateReply)
    assert isinstance(reply, UpdateReply)
    np.testing.assert_array_equal(reply.coefficients.scales, expected.coefficients.scales)
