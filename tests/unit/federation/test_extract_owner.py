"""Federations that learn to write in lockstep and in secure sums, and what an owner is told of their jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import FailureCode, JobReply, JobRequest
from ifedicl.owner.approval import OwnFacts, explain
from ifedicl.owner.policy import load_client_settings
from ifedicl.owner.preview import preview
from ifedicl.owner.site import open_site
from ifedicl.runs import RunOptions, federate, simulate
from ifedicl.settings import Coordination, Method, ModelSettings, changed, load_preset
from tests.support import tiny
from tests.support.endpoints import Asked
from tests.support.guarded import code
from tests.support.passages import TASK, passages, write_files

COUNTS = {"a": 20, "b": 17, "c": 23, "d": 18}
HANDS = {name: passages(count, first=40 * number) for number, (name, count) in enumerate(COUNTS.items())}
SHORT: dict[str, Any] = {
    "readout": False,
    "weighting": "examples",
    "holdout": {"selection": 0.3, "gate": 0.2},
    "rounds": {"rounds": 2, "select_by": "last"},
    "calibration": {"local_steps": 2, "batch_size": 4, "learning_rate": 0.01},
}


def method(**sections: Any) -> Method:
    return changed(load_preset("subspace"), SHORT | sections, "a test")


def federated(backbone: Backbone, settings: Method, options: RunOptions | None = None) -> Adapter:
    clients = simulate(backbone, TASK, HANDS)
    outcome = federate(clients, ModelSettings(source="tiny"), TASK, settings, options=options or RunOptions())
    assert not outcome.outcome.state.coefficients.is_identity
    return outcome.adapter


def test_clients_in_lockstep_learn_what_they_learn_in_turn(backbone: Backbone) -> None:
    settings = method(holdout={"selection": 0.3, "gate": 0.0})
    together, in_turn = (federated(backbone, settings, RunOptions(Coordination(clients_in_a_pass=many))) for many in (4, 1))
    assert not in_turn.coefficients.is_identity
    for name, array in in_turn.coefficients.arrays.items():
        np.testing.assert_allclose(together.coefficients.arrays[name], array, atol=2e-3)


def test_secure_sums_give_nearly_what_the_open_mode_gives(backbone: Backbone) -> None:
    privacy = {"mode": "secure", "min_survivors": 3, "min_examples": 4}
    secure, opened = federated(backbone, method(privacy=privacy)), federated(backbone, method())
    np.testing.assert_allclose(secure.context.vectors, opened.context.vectors, atol=2e-3)
    assert secure.provenance["gate"]["examples"] == opened.provenance["gate"]["examples"]
    rows = passages(12, first=300)
    ours, theirs = (adapter.on_model(backbone).evaluate(rows).loss for adapter in (secure, opened))
    assert ours == pytest.approx(theirs, abs=0.1)


@pytest.fixture
def client(tmp_path: Path, llama_folder: Path) -> Path:
    """The ``client.toml`` of an owner of passages."""
    write_files(tmp_path, {"own": 40})
    path = tmp_path / "client.toml"
    path.write_text(
        '[data]\nfile = "own.jsonl"\nkind = "extract"\nlabel_column = "answer"\n'
        f'[model]\nsource = {json.dumps(str(llama_folder))}\ndevice = "cpu"\ndtype = "float32"\n'
        f'[allow]\ntasks = ["{TASK.digest}", "{tiny.TASK.digest}"]\nmodels = ["any"]\nclass_counts = true\n'
    )
    return path


def test_an_owner_is_told_what_a_job_gets_and_no_answer_is_shown(client: Path) -> None:
    own = OwnFacts.of(load_client_settings(client))
    assert own.model is not None
    manifest = Manifest.of(TASK, method(), own.model)
    facts, shown = explain(own, manifest), preview(own, manifest)
    assert facts["task"]["asks"] == "an answer of at most 16 tokens"
    assert not any("label" in sentence for sentence in facts["would_leave"])
    assert shown["task"]["rows_with_other_labels"] == 0
    answers = {row.answer for row in passages(40)}
    assert not [answer for answer in answers if answer in json.dumps([facts, shown], default=str)]
    labels = preview(own, Manifest.of(tiny.TASK, method(), own.model))
    assert labels["task"]["rows_with_other_labels"] == 40


def test_a_site_answers_jobs_of_the_kind_of_its_rows_only(client: Path) -> None:
    own = OwnFacts.of(load_client_settings(client))
    assert own.model is not None
    site = Asked(open_site(client, "north"))
    assert site.handle(JobRequest(Manifest.of(TASK, method(), own.model))) == JobReply()
    assert code(site.handle(JobRequest(Manifest.of(tiny.TASK, method(), own.model)))) is FailureCode.BAD_TASK
