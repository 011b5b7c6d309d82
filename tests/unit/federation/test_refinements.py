"""Refinements through a whole federation: what is asked, resumed, refused and survived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.readout import Readout
from ifedicl.core.refinement import Products, Refinement
from ifedicl.errors import FederationError
from ifedicl.federation import messages
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages import Failure, FailureCode, ProductsReply, ProductsRequest, Reply, Request
from ifedicl.federation.request_validation import RequestChecks
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.engines import RecordingEngine
from tests.support.jobs import job_of
from tests.support.local_runs import real, run_real, shape_of
from tests.support.readouts import asked_products

METHOD = tiny.method(rounds={"rounds": 2}, readout={})
ONE_SHOT = tiny.method(rounds={"rounds": 0}, readout={}, weighting="examples")


def run(backbone: Backbone, rule: Callable[..., Reply] = lambda _name, _request, reply: reply, method: Any = METHOD) -> Outcome:
    return run_real(backbone, method, engine=RecordingEngine(engine_of(real(backbone)), rule))


def of(outcome: Outcome, step: str) -> int:
    """How often a client was asked."""
    return sum(item.step == step for item in outcome.state.traffic if item.client == "a")


def test_a_readout_is_refined_as_often_as_the_settings_say(backbone: Backbone) -> None:
    outcome = run(backbone)
    assert of(outcome, "products") == 3
    assert outcome.state.fit is not None
    assert outcome.state.fit.refined is not None
    manifest = job_of(METHOD, backbone)
    features, count = manifest.directions.shape
    assert outcome.state.fit.sums.sketch.shape == (features, count + outcome.state.fit.refined.shape[1])
    assert of(run(backbone, method=tiny.method(rounds={"rounds": 2}, readout={"refinements": 0})), "products") == 0


def test_a_refinement_costs_no_forward_pass(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    client, manifest = real(backbone)[0], job_of(ONE_SHOT, backbone)
    client.prepare(manifest)
    name = _products(manifest, 1).context_id
    client.handle(messages.JobRequest(manifest))
    assert isinstance(client.handle(messages.StatisticsRequest(name, manifest.identity)), messages.StatisticsReply)
    monkeypatch.setattr(Scorer, "read", lambda *_inputs, **_options: pytest.fail("a forward pass"))
    assert isinstance(client.handle(_products(manifest, 1)), ProductsReply)


def _products(manifest: Manifest, columns: int) -> ProductsRequest:
    name = context_id(manifest.digest, manifest.no_context)
    return ProductsRequest(name, manifest.identity, asked_products(manifest.features, columns))


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_run_that_stops_between_refinements_ends_with_the_same_bits(backbone: Backbone, tmp_path: Path, after: int) -> None:
    asked = 0

    def stop(name: str, request: Request, reply: Reply) -> Reply:
        nonlocal asked
        asked += name == "a" and isinstance(request, ProductsRequest)
        if asked > after or (after == 3 and isinstance(request, messages.EvaluateRequest) and request.readouts):
            raise FederationError("stopped")
        return reply

    file = tmp_path / "state"
    engine = RecordingEngine(engine_of(real(backbone)), stop)
    with pytest.raises(FederationError, match="stopped"):
        Coordinator(engine, tiny.TASK, METHOD, shape_of(backbone), checkpoint_file=file).run()
    resumed = Coordinator(engine_of(real(backbone)), tiny.TASK, METHOD, shape_of(backbone), checkpoint_file=file).run(
        resume=True
    )
    whole = run(backbone)
    assert whole.readout is not None
    assert resumed.readout is not None
    np.testing.assert_array_equal(resumed.readout.weights, whole.readout.weights)


def test_without_products_the_readout_is_that_of_the_sketch(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    tried: tuple[Readout, ...] = ()

    def refuse(_name: str, request: Request, reply: Reply) -> Reply:
        nonlocal tried
        tried = request.readouts if isinstance(request, messages.EvaluateRequest) else tried
        return Failure(FailureCode.SPENT) if isinstance(request, ProductsRequest) else reply

    outcome = run(backbone, refuse)
    assert "too few clients give products" in caplog.text
    assert of(outcome, "products") == 1
    fit = outcome.state.fit
    assert fit is not None
    assert fit.refined is None
    solved = fit.sums.solve(job_of(METHOD, backbone).directions, METHOD.pooled_layers(backbone.layers))
    assert [readout.weights.tobytes() for readout in tried] == [readout.weights.tobytes() for readout in solved]


@pytest.mark.parametrize("factor", [np.nan, 1e9, -1.0])
def test_a_liar_is_left_out(backbone: Backbone, factor: float) -> None:
    def lie(name: str, _request: Request, reply: Reply) -> Reply:
        if name == "a" and isinstance(reply, ProductsReply):
            return ProductsReply(Products(reply.sums.examples, reply.sums.products * factor))
        return reply

    outcome = run(backbone, lie)
    bad = [item.client for item in outcome.state.traffic if item.failure == "bad_reply"]
    assert bad == ["a"] * 3
    assert outcome.readout is None or np.isfinite(outcome.readout.weights).all()


@pytest.mark.parametrize("readout", [{"refinements": 0}, None])
def test_a_client_refuses_refinements_that_the_method_does_not_have(readout: Any, backbone: Backbone) -> None:
    sections = {} if readout is None else {"readout": readout}
    manifest = job_of(tiny.method(rounds={"rounds": 1}, **sections), backbone)
    assert not RequestChecks(manifest).fits(_products(manifest, 1))


def test_a_client_refuses_more_directions_than_a_refinement_has(backbone: Backbone) -> None:
    checks, manifest = RequestChecks(job_of(METHOD, backbone)), job_of(METHOD, backbone)
    assert checks.fits(_products(manifest, manifest.columns))
    assert not checks.fits(_products(manifest, manifest.columns + 1))
    skewed = _products(manifest, 1)
    wrong = Refinement(skewed.refinement.centre, skewed.refinement.directions * np.float16(2))
    assert not checks.fits(ProductsRequest(skewed.context_id, manifest.identity, wrong))
