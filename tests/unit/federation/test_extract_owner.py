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
from ifedicl.runs import RunOptions
from ifedicl.settings import Coordination, Method
from tests.support import tiny
from tests.support.endpoints import Asked
from tests.support.guarded import code
from tests.support.kind_federations import SECURE, SIZES, assert_learnt_the_same, federated, owner_client, short
from tests.support.passages import TASK, passages, write_files

HANDS = {name: passages(count, first=40 * number) for number, (name, count) in enumerate(SIZES.items())}


def method(**sections: Any) -> Method:
    return short(**{"readout": False, "holdout": {"selection": 0.3, "gate": 0.2}} | sections)


def learnt(backbone: Backbone, settings: Method, options: RunOptions | None = None) -> Adapter:
    result = federated(backbone, TASK, HANDS, settings, options)
    assert not result.outcome.state.coefficients.is_identity
    return result.adapter


def test_clients_in_lockstep_learn_what_they_learn_in_turn(backbone: Backbone) -> None:
    settings = method(holdout={"selection": 0.3, "gate": 0.0})
    together, in_turn = (learnt(backbone, settings, RunOptions(Coordination(clients_in_a_pass=many))) for many in (4, 1))
    assert_learnt_the_same(together, in_turn)


def test_secure_sums_give_nearly_what_the_open_mode_gives(backbone: Backbone) -> None:
    secure, opened = learnt(backbone, method(privacy=SECURE)), learnt(backbone, method())
    np.testing.assert_allclose(secure.context.vectors, opened.context.vectors, atol=2e-3)
    assert secure.provenance["gate"]["examples"] == opened.provenance["gate"]["examples"]
    rows = passages(12, first=300)
    ours, theirs = (adapter.on_model(backbone).evaluate(rows).loss for adapter in (secure, opened))
    assert ours == pytest.approx(theirs, abs=0.1)


@pytest.fixture
def client(tmp_path: Path, llama_folder: Path) -> Path:
    """The ``client.toml`` of an owner of passages."""
    write_files(tmp_path, {"own": 40})
    return owner_client(tmp_path, llama_folder, TASK, data='label_column = "answer"\n', allow="class_counts = true\n")


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
