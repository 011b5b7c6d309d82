"""What holds for one label holds for several: lockstep, secure sums, checks of replies, approval by an owner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

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
from ifedicl.runs import RunOptions
from ifedicl.settings import Coordination, Method, changed, load_preset
from tests.support import tiny
from tests.support.endpoints import Asked
from tests.support.guarded import code
from tests.support.kind_federations import SECURE, SIZES, assert_learnt_the_same, federated, owner_client, short
from tests.support.label_sets import TASK, examples
from tests.support.local_runs import shape_of

HANDS = {name: examples(count, seed=seed) for seed, (name, count) in enumerate(SIZES.items())}


def learnt(backbone: Backbone, method: Method, options: RunOptions | None = None) -> Adapter:
    return federated(backbone, TASK, HANDS, method, options).adapter


def test_clients_in_lockstep_learn_what_they_learn_in_turn(backbone: Backbone) -> None:
    together, alone = (
        learnt(backbone, short(), RunOptions(Coordination(clients_in_a_pass=4))),
        learnt(backbone, short()),
    )
    assert_learnt_the_same(together, alone)


def test_secure_sums_give_nearly_what_the_open_mode_gives(backbone: Backbone) -> None:
    secure, opened = learnt(backbone, short(privacy=SECURE)), learnt(backbone, short())
    assert not secure.coefficients.is_identity
    ours, theirs = (adapter.on_model(backbone).evaluate(examples(12, seed=9)).loss for adapter in (secure, opened))
    assert ours == pytest.approx(theirs, abs=0.2)


def test_sums_that_count_labels_as_if_each_example_had_one_are_refused(backbone: Backbone) -> None:
    manifest = Manifest.of(TASK, short(), shape_of(backbone))
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
    return owner_client(tmp_path, llama_folder, TASK)


def test_an_owner_is_told_in_words_what_a_job_gets_and_answers_jobs_of_its_kind_only(client: Path) -> None:
    own = OwnFacts.of(load_client_settings(client))
    assert own.model is not None
    manifest = Manifest.of(TASK, short(), own.model)
    facts, shown = explain(own, manifest), preview(own, manifest)
    assert facts["task"]["asks"] == "each of warm, alone, at home, beside bad"
    assert any("an example with several counts for one that its hash draws" in sentence for sentence in facts["would_leave"])
    assert shown["task"]["rows_with_other_labels"] == 0
    site = Asked(open_site(client, "north"))
    one_shot = changed(load_preset("one-shot"), {"holdout": {"selection": 0.3}}, "a test")
    assert site.handle(JobRequest(Manifest.of(TASK, one_shot, own.model))) == JobReply()
    assert code(site.handle(JobRequest(Manifest.of(tiny.TASK, one_shot, own.model)))) is FailureCode.BAD_TASK
