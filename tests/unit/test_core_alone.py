"""``injection.context_scale = "none"``: λ and β stay where they are, whoever says otherwise, and Γ alone is calibrated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import example_gradients
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.warm_start import Start
from ifedicl.errors import ConfigError
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import EvaluateRequest, Reply, Request, UpdateReply
from ifedicl.federation.request_validation import RequestChecks
from ifedicl.personal import personalise
from ifedicl.runs import RunOptions, federate, simulate
from ifedicl.settings import Coordination, Method, ModelSettings, load_preset, validated
from tests.support import tiny
from tests.support.endpoints import bare
from tests.support.local_runs import HANDS, real, run_real, shape_of

NONE = {"context_scale": "none"}
ALONE = tiny.method(injection=NONE, subspace={"rank": 3})
WAYS: dict[str, dict[str, Any]] = {
    "mean": {},
    "momentum": {"server": {"optimizer": "momentum", "learning_rate": 1.0}},
    "adam": {"server": {"optimizer": "adam"}},
    "gradient": {"server": {"update": "gradient", "draw": 0.8}},
    "robust": {"robust": {"rule": "median"}},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_update_moves_the_core_and_nothing_else(way: str, backbone: Backbone) -> None:
    outcome = run_real(backbone, tiny.method(injection=NONE, subspace={"rank": 3}, **WAYS[way]))
    coefficients = outcome.state.coefficients
    assert coefficients.is_core_alone
    assert coefficients.core is not None
    assert np.abs(coefficients.core).max() > 1e-4


def test_clients_in_one_pass_give_the_same_core(backbone: Backbone) -> None:
    def run(clients_in_a_pass: int) -> Coefficients:
        options = RunOptions(Coordination(clients_in_a_pass=clients_in_a_pass))
        clients = simulate(backbone, tiny.TASK, HANDS)
        return federate(clients, ModelSettings(source="tiny"), tiny.TASK, ALONE, options=options).outcome.state.coefficients

    alone, together = run(1), run(3)
    assert together.is_core_alone
    assert alone.core is not None
    assert together.core is not None
    np.testing.assert_allclose(together.core, alone.core, atol=1e-3)  # Γ travels as float16


def test_a_client_that_moves_them_moves_nothing(backbone: Backbone) -> None:
    class Liar:
        def __init__(self, inner: Any) -> None:
            self.inner, self.name = inner, inner.name

        def handle(self, request: Request, /) -> Reply:
            reply: Reply = self.inner.handle(request)
            if isinstance(reply, UpdateReply):
                moved = reply.coefficients.scales + np.float32(0.5)
                return replace(reply, coefficients=replace(reply.coefficients, scales=moved))
            return reply

    first, *others = real(backbone)
    engine = LocalEngine([bare(Liar(first)), *map(bare, others)])
    assert run_real(backbone, ALONE, engine=engine).state.coefficients.is_core_alone


def test_a_coordinator_that_moves_them_is_refused(backbone: Backbone) -> None:
    checks = RequestChecks(Manifest.of(tiny.TASK, ALONE, shape_of(backbone)))
    identity = checks.manifest.identity
    assert checks.fits(EvaluateRequest("0" * 48, identity))
    for place in (0, 1):
        scales = identity.scales.copy()
        scales[0, 0, place] += 0.1
        assert not checks.fits(EvaluateRequest("0" * 48, replace(identity, scales=scales)))


def test_a_warm_start_brings_its_core_alone(backbone: Backbone) -> None:
    def starter(_context: Context, initial: Coefficients) -> Start:
        return Start(replace(initial, scales=initial.scales + np.float32(0.3)), 1)

    engine = LocalEngine(list(map(bare, real(backbone))))
    outcome = Coordinator(engine, tiny.TASK, ALONE, shape_of(backbone), starter=starter).run()
    assert outcome.state.best.is_core_alone


def test_personal_coefficients_stay_a_lora(backbone: Backbone) -> None:
    adapter = federate(simulate(backbone, tiny.TASK, HANDS), ModelSettings(source="tiny"), tiny.TASK, ALONE).adapter
    personal = personalise(adapter, tiny.examples(30, seed=5), backbone, steps=4)
    assert personal.adapter.coefficients.is_core_alone


def test_the_gradients_of_single_examples_are_of_the_core(backbone: Backbone) -> None:
    """In private mode they share a clip, of which λ and β take nothing."""
    scorer = Scorer(backbone, tiny.TASK)
    encoded = scorer.encoded(tiny.examples(6))
    context = run_real(backbone, ALONE).context
    identity = Coefficients.identity(Form(backbone.layers, 3))
    (_, found), *_ = example_gradients(scorer, encoded, context, identity, ALONE, range(6))
    assert not found["scales"].any()
    assert found["core"].any()
    usual = tiny.method(subspace={"rank": 3})
    (_, moved), *_ = example_gradients(scorer, encoded, context, identity, usual, range(6))
    assert moved["scales"].any()
    np.testing.assert_array_equal(moved["core"], found["core"])


def test_without_a_subspace_nothing_would_be_calibrated() -> None:
    with pytest.raises(ConfigError, match="without \\[subspace\\] nothing is calibrated"):
        validated(Method, {"injection": NONE}, "t")
    with pytest.raises(ConfigError, match="context_scale"):
        validated(Method, {"injection": {"context_scale": "off"}, "subspace": {}}, "t")


def test_the_preset_servable_has_a_readout_without_an_intercept(backbone: Backbone) -> None:
    method = load_preset("servable")
    assert method.fixes_scalars
    assert not method.pooled_layers(backbone.layers)
    outcome = run_real(backbone, method.model_copy(update={"rounds": tiny.method(rounds={"rounds": 1}).rounds}))
    assert outcome.readout is None or not outcome.readout.weights[:, -1].any()
