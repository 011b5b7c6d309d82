"""What holds for one label holds for several: lockstep, secure sums, checks of replies, approval by an owner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import FailureCode, JobReply, JobRequest, StatisticsReply
from ifedicl.federation.reply_validation import ReplyChecks
from ifedicl.federation.sample_exchange import SampleCounts, sample_exchange
from ifedicl.owner.approval import OwnFacts, explain
from ifedicl.owner.policy import load_client_settings
from ifedicl.owner.preview import preview
from ifedicl.owner.site import open_site
from ifedicl.runs import RunOptions, federate, simulate
from ifedicl.settings import Coordination, Method, ModelSettings, changed, load_preset
from tests.support import tiny
from tests.support.endpoints import Asked
from tests.support.guarded import code
from tests.support.label_sets import TASK, examples
from tests.support.local_runs import shape_of

HANDS = {name: examples(count, seed=seed) for seed, (name, count) in enumerate({"a": 20, "b": 17, "c": 23, "d": 18}.items())}
SHORT: dict[str, Any] = {
    "weighting": "examples",
    "holdout": {"selection": 0.3, "gate": 0.0},
    "rounds": {"rounds": 2, "select_by": "last"},
    "calibration": {"local_steps": 2, "batch_size": 4, "learning_rate": 0.01},
}
SECURE = {"mode": "secure", "min_survivors": 3, "min_examples": 4}


def method(**sections: Any) -> Method:
    return changed(load_preset("subspace"), SHORT | sections, "a test")


def federated(backbone: Backbone, settings: Method, options: RunOptions | None = None) -> Adapter:
    clients = simulate(backbone, TASK, HANDS)
    return federate(clients, ModelSettings(source="tiny"), TASK, settings, options=options or RunOptions()).adapter


def test_clients_in_lockstep_learn_what_they_learn_in_turn(backbone: Backbone) -> None:
    together, alone = (
        federated(backbone, method(), RunOptions(Coordination(clients_in_a_pass=4))),
        federated(backbone, method()),
    )
    assert not alone.coefficients.is_identity
    for name, array in alone.coefficients.arrays.items():
        np.testing.assert_allclose(together.coefficients.arrays[name], array, atol=2e-3)


def test_secure_sums_give_nearly_what_the_open_mode_gives(backbone: Backbone) -> None:
    secure, opened = federated(backbone, method(privacy=SECURE)), federated(backbone, method())
    assert not secure.coefficients.is_identity
    ours, theirs = (adapter.on_model(backbone).evaluate(examples(12, seed=9)).loss for adapter in (secure, opened))
    assert ours == pytest.approx(theirs, abs=0.2)


def test_sums_that_count_labels_as_if_each_example_had_one_are_refused(backbone: Backbone) -> None:
    manifest = Manifest.of(TASK, method(), shape_of(backbone))
    reply = sample_exchange(manifest, SampleCounts(np.full(4, 5), selection=4, gate=0))["statistics"][1]
    assert isinstance(reply, StatisticsReply)
    counts = np.array([[20.0, 9, 8, 7], [0, 11, 12, 13]])
    sums = replace(reply.sums, counts=counts, moment=np.zeros_like(reply.sums.moment))
    checks = ReplyChecks(manifest)
    assert checks.is_usable_statistics(StatisticsReply(sums))
    assert not checks.is_usable_statistics(StatisticsReply(replace(sums, counts=np.full(4, 5.0))))


@pytest.fixture
def client(tmp_path: Path, llama_folder: Path) -> Path:
    """The ``client.toml`` of an owner of texts with several labels."""
    rows = ({"text": row.text, "label": sorted(row.labels)} for row in examples(40))
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "client.toml"
    path.write_text(
        '[data]\nfile = "own.jsonl"\nkind = "multi-label"\n'
        f'[model]\nsource = {json.dumps(str(llama_folder))}\ndevice = "cpu"\ndtype = "float32"\n'
        f'[allow]\ntasks = ["{TASK.digest}", "{tiny.TASK.digest}"]\nmodels = ["any"]\n'
    )
    return path


def test_an_owner_is_told_in_words_what_a_job_gets_and_answers_jobs_of_its_kind_only(client: Path) -> None:
    own = OwnFacts.of(load_client_settings(client))
    assert own.model is not None
    manifest = Manifest.of(TASK, method(), own.model)
    facts, shown = explain(own, manifest), preview(own, manifest)
    assert facts["task"]["asks"] == "each of warm, alone, at home, beside bad"
    assert any("an example with several counts for one that its hash draws" in sentence for sentence in facts["would_leave"])
    assert shown["task"]["rows_with_other_labels"] == 0
    site = Asked(open_site(client, "north"))
    one_shot = changed(load_preset("one-shot"), {"holdout": {"selection": 0.3}}, "a test")
    assert site.handle(JobRequest(Manifest.of(TASK, one_shot, own.model))) == JobReply()
    assert code(site.handle(JobRequest(Manifest.of(tiny.TASK, one_shot, own.model)))) is FailureCode.BAD_TASK
