"""Whole secure runs: the same adapter as in open mode, and no single client's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.federation.checkpoint import load
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import ContextRequest, JobRequest, Reply, Request, RevealRequest
from ifedicl.federation.secure.sum_client import identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.kinds.classify import Example
from ifedicl.ledger.entries import Entry, Head
from ifedicl.ledger.ledger import read
from ifedicl.ledger.usage import History
from ifedicl.owner.endpoint import simulated_endpoints
from ifedicl.owner.recorder import Unrecorded
from ifedicl.settings import TOGETHER, PrivacySettings
from tests.support import tiny
from tests.support.endpoints import engine_of, engine_over, secure_layer
from tests.support.engines import RecordingEngine
from tests.support.secure import RULES, masking
from tests.support.stopping import StopError, stop_after

# Whole runs

HANDS: dict[str, tuple[Example, ...]] = {name: tiny.examples(20, seed=seed) for seed, name in enumerate("abcd")}
WEIGHTED: dict[str, Any] = {
    "weighting": "examples",
    "rounds": {"rounds": 2},
    "holdout": {"selection": 0.25, "gate": 0.2},
}
CALIBRATION = tiny.method(**WEIGHTED).calibration


def real(backbone: Backbone, hands: Mapping[str, tuple[Example, ...]] = HANDS) -> list[Client]:
    return [Client(name, examples, backbone, secret=name.encode()) for name, examples in hands.items()]


def masked(backbone: Backbone, hands: Mapping[str, tuple[Example, ...]] = HANDS) -> LocalEngine:
    """An engine over the clients' secure layers, before any job."""
    return engine_over(masking(real(backbone, hands)))


def run(
    backbone: Backbone, engine: Engine, *, rules: PrivacySettings | None = RULES, sections: Any = None, **options: Any
) -> Outcome:
    privacy = {} if rules is None else {"privacy": rules.model_dump()}
    method = tiny.method(**{**WEIGHTED, **(sections or {})}, **privacy)
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    files = {name: options.pop(name) for name in ("checkpoint_file", "observer") if name in options}
    return Coordinator(engine, tiny.TASK, method, shape, **files).run(**options)


@pytest.fixture(scope="module")
def whole(backbone: Backbone) -> Outcome:
    """A secure run that nothing disturbs."""
    return run(backbone, SecureEngine(masked(backbone), RULES, CALIBRATION))


SECTIONS = [
    {},
    {"server": {"update": "gradient", "draw": 0.5}},
    {"server": {}},
    {"vectors": {"balance": "class"}},
]


@pytest.mark.parametrize("sections", SECTIONS, ids=["mean", "gradient", "server", "by class"])
def test_a_secure_run_gives_the_open_runs_adapter_up_to_rounding(backbone: Backbone, sections: Any) -> None:
    plain = run(backbone, engine_of(real(backbone)), rules=None, sections=sections)
    secure = run(backbone, SecureEngine(masked(backbone), RULES, CALIBRATION), sections=sections)
    np.testing.assert_allclose(secure.context.vectors, plain.context.vectors, atol=2.0**-12)
    np.testing.assert_allclose(secure.coefficients.scales, plain.coefficients.scales, atol=1e-4)
    assert secure.chosen_round == plain.chosen_round
    assert secure.gate is not None
    assert plain.gate is not None
    assert secure.gate.adapter.correct == plain.gate.adapter.correct
    assert (secure.gate.truth, secure.gate.answers) == (plain.gate.truth, plain.gate.answers)
    assert [item.held_out and item.held_out.examples for item in secure.state.history] == [
        item.held_out and item.held_out.examples for item in plain.state.history
    ]


def test_a_secure_run_with_subspace_and_readout_ends_with_both(backbone: Backbone) -> None:
    sections = {"subspace": {"rank": 2}, "readout": {}}
    outcome = run(backbone, SecureEngine(masked(backbone), RULES, CALIBRATION), sections=sections)
    assert outcome.context.rank == 2
    assert outcome.state.readout_round == outcome.chosen_round


def test_the_coordinator_keeps_no_single_clients_figures_but_its_traffic(whole: Outcome) -> None:
    assert set(whole.state.client_vectors) == {TOGETHER}
    assert all(set(record.by_client) == {TOGETHER} for record in whole.state.history)
    assert {record.worst for record in whole.state.history} == {None}
    assert {item.client for item in whole.state.traffic} == set(HANDS)
    assert {item.step for item in whole.state.traffic} == {"job", "vectors", "context", "update", "evaluate", "compare"}


def test_a_run_that_was_killed_goes_on_to_the_same_adapter(backbone: Backbone, whole: Outcome, tmp_path: Path) -> None:
    file = tmp_path / "state"
    with pytest.raises(StopError):
        run(backbone, SecureEngine(masked(backbone), RULES, CALIBRATION), checkpoint_file=file, observer=stop_after(1))
    resumed = run(backbone, SecureEngine(masked(backbone), RULES, CALIBRATION), checkpoint_file=file, resume=True)
    np.testing.assert_array_equal(resumed.coefficients.scales, whole.coefficients.scales)
    assert resumed.state.history == whole.state.history


class Telling(RecordingEngine):
    """An engine that notes the heads that go with requests."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.told: list[tuple[str, Mapping[str, Head]]] = []

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """The deliveries of the inner engine."""
        self.told.append((next(iter(requests.values())).kind, heads))
        yield from super().exchange(requests, deadline, heads)

    @property
    def first_begin(self) -> Mapping[str, Head]:
        """The heads that went with the first step of the first sum."""
        return next(heads for kind, heads in self.told if kind == "sum_begin")


def told(backbone: Backbone, folder: Path, **options: Any) -> tuple[Telling, Outcome]:
    """A run with ledgers, and the engine that noted the heads."""
    manifest = Manifest.of(tiny.TASK, tiny.method(**WEIGHTED, privacy=RULES.model_dump()), backbone.shape)
    engine = Telling(LocalEngine(simulated_endpoints(real(backbone), manifest, folder / "ledgers", ())))
    return engine, run(
        backbone, SecureEngine(engine, RULES, CALIBRATION), checkpoint_file=folder / "checkpoint" / "state", **options
    )


def line_of(folder: Path, name: str, head: Head) -> Entry:
    """The line of a client's ledger that a head names."""
    entry = read(folder / "ledgers" / f"{name}.jsonl")[0][head.entries - 1]
    assert entry.head == head
    return entry


def test_a_resumed_secure_run_tells_each_client_the_head_in_its_checkpoint(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        told(backbone, tmp_path, observer=stop_after(1))
    stored = load(tmp_path / "checkpoint" / "state")
    assert stored is not None
    assert set(stored.heads) == set(HANDS)
    for name, head in stored.heads.items():
        line_of(tmp_path, name, head)
    engine, outcome = told(backbone, tmp_path, resume=True)
    assert engine.first_begin == stored.heads
    assert "ledger" not in {item.failure for item in outcome.state.traffic}


def test_more_rounds_tell_each_client_the_head_that_the_coordinator_knew(backbone: Backbone, tmp_path: Path) -> None:
    engine, _ = told(backbone, tmp_path)
    engine, outcome = told(backbone, tmp_path, more_rounds=1)
    assert set(engine.first_begin) == set(HANDS)
    for name, head in engine.first_begin.items():
        # The job's reply came without a head that was asked for: it proves nothing about the lines before.
        assert line_of(tmp_path, name, head).facts["kind"] == "sum_reveal_reply"
    assert not any(heads for kind, heads in engine.told if kind in {"job", "context"}), "all get the same bytes"
    assert "ledger" not in {item.failure for item in outcome.state.traffic}


def test_a_restarted_client_is_sent_the_vectors_again_and_nobody_else_is(backbone: Backbone, whole: Outcome) -> None:
    pins = {client.name: identity_of(client).public for client in real(backbone)}
    local = masked(backbone)

    def change(name: str, request: Request, reply: Reply) -> Reply:
        if isinstance(request, RevealRequest) and name == "b" and len(engine.asked(ContextRequest)) == len(HANDS):
            fresh = next(client for client in real(backbone) if client.name == name)
            local._clients[name] = Unrecorded(secure_layer(fresh, pins, RULES), History())
        return reply

    engine = RecordingEngine(local, change)
    outcome = run(backbone, SecureEngine(engine, RULES, CALIBRATION))
    assert engine.asked(JobRequest) == [*HANDS, "b"]
    assert engine.asked(ContextRequest) == [*HANDS, "b"]
    assert {item.failure for item in outcome.state.traffic} == {None, "no_context"}
    np.testing.assert_array_equal(outcome.coefficients.scales, whole.coefficients.scales)


def test_added_examples_are_taken_in_by_more_rounds(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "state"
    run(backbone, SecureEngine(masked(backbone), RULES, CALIBRATION), checkpoint_file=file)
    more = {name: (*rows, *tiny.examples(30, seed=99)[20:]) for name, rows in HANDS.items()}
    outcome = run(backbone, SecureEngine(masked(backbone, more), RULES, CALIBRATION), checkpoint_file=file, more_rounds=1)
    plain = tmp_path / "plain"
    run(backbone, engine_of(real(backbone)), rules=None, checkpoint_file=plain)
    expected = run(backbone, engine_of(real(backbone, more)), rules=None, checkpoint_file=plain, more_rounds=1)
    assert outcome.state.client_vectors[TOGETHER].examples == sum(
        vectors.examples for vectors in expected.state.client_vectors.values()
    )
    np.testing.assert_allclose(outcome.context.vectors, expected.context.vectors, atol=2.0**-12)
