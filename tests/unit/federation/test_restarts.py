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
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsRequest,
)
from tests.support import tiny
from tests.support.engines import Restarting, once_each
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


def test_all_clients_may_restart_before_every_request(backbone: Backbone) -> None:
    engine = Restarting(real(backbone), once_each(lambda name, request: True))
    method = tiny.method(rounds={"rounds": 2})
    assert_same_result(run_real(backbone, method, engine=engine), run_real(backbone, method))


def test_a_client_does_not_mix_two_tasks_that_it_serves_in_turn(backbone: Backbone) -> None:
    shape = (backbone.layers, 2, backbone.width)
    other = tiny.TASK.model_copy(update={"template": "Note: {text}\nFeeling:"})
    install = ContextRequest(tiny.TASK, SHORT, backbone.fingerprint, Context(np.ones(shape, "f4")), "first")
    update = UpdateRequest("first", 0, 0, 2, scales(0.1, layers=backbone.layers))
    alone, shared = real(backbone)[0], real(backbone)[0]
    assert alone.handle(install) == shared.handle(install) == ContextReply()
    shared.handle(VectorsRequest(other, SHORT, backbone.fingerprint, ""))
    expected, reply = alone.handle(update), shared.handle(update)
    assert isinstance(expected, UpdateReply)
    if reply != Failure(FailureCode.NO_CONTEXT):
        assert isinstance(reply, UpdateReply)
        np.testing.assert_array_equal(reply.coefficients.scales, expected.coefficients.scales)
