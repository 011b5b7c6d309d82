"""Sample messages are what a real run's would be: whole on the wire, usable, and of every step that the method asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import EvaluateReply, EvaluateRequest, decode_reply, decode_request, encode
from ifedicl.federation.reply_validation import ReplyChecks, is_usable_evaluation
from ifedicl.federation.sample_exchange import SampleCounts, sample_exchange
from tests.support import tiny

SHAPE = ModelShape("f" * 64, layers=3, width=32)
STEPS = {
    "plain": ({}, {"job", "vectors", "context", "update", "evaluate"}),
    "no held-out part": ({"holdout": {"selection": 0.0}}, {"job", "vectors", "context", "update"}),
    "gradients": ({"server": {"update": "gradient"}}, {"job", "vectors", "context", "gradient", "evaluate"}),
    "all": (
        {"holdout": {"gate": 0.2}, "subspace": {"rank": 2}, "readout": {}},
        {"job", "vectors", "context", "update", "evaluate", "statistics", "products", "readouts", "compare"},
    ),
    "no rounds": ({"rounds": {"rounds": 0}, "readout": {}}, {"job", "statistics", "products", "readouts"}),
    "noise": (
        {
            "weighting": "examples",
            "rounds": {"rounds": 0, "select_by": "accuracy"},
            "holdout": {"gate": 0.2},
            "readout": {},
            "privacy": {"mode": "private", "noise": {}},
        },
        {"job", "noisy_statistics", "readouts", "compare"},
    ),
}


@pytest.mark.parametrize(("sections", "steps"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("shape", [SHAPE, ModelShape("f" * 64, layers=1, width=1)], ids=["the model's", "the smallest"])
def test_the_coordinator_would_take_every_sample_reply(sections: dict[str, Any], steps: set[str], shape: ModelShape) -> None:
    manifest = Manifest.of(tiny.TASK, tiny.method(**sections), shape)
    groups = np.full(manifest.method.groups(len(tiny.TASK.labels)), 6)
    exchange = sample_exchange(manifest, SampleCounts(groups, selection=9, gate=7))
    assert set(exchange) == steps
    checks = ReplyChecks(manifest)
    usable: dict[str, Any] = {
        "vectors": checks.is_usable_vectors,
        "update": checks.is_usable_update,
        "gradient": checks.is_usable_gradient,
        "statistics": checks.is_usable_statistics,
        "noisy_statistics": checks.is_usable_noisy_statistics,
        "compare": checks.is_usable_comparison,
    }
    for name, (request, reply) in exchange.items():
        assert type(decode_request(encode(request))) is type(request), name
        received = decode_reply(encode(reply))
        assert type(received) is type(reply), name
        if name in usable:
            assert usable[name](received), name
        elif isinstance(request, EvaluateRequest):
            assert isinstance(received, EvaluateReply)
            assert is_usable_evaluation(received, len(request.candidates)), name


def test_the_counts_stand_behind_the_replies() -> None:
    manifest = Manifest.of(tiny.TASK, tiny.method(holdout={"gate": 0.2}), SHAPE)
    exchange: dict[str, Any] = dict(sample_exchange(manifest, SampleCounts(np.array([11]), selection=5, gate=4)))
    assert exchange["vectors"][1].vectors.examples == exchange["update"][1].examples == 11
    assert exchange["evaluate"][1].tallies[0].examples == 5
    assert exchange["compare"][1].comparison.adapter.examples == 4
