"""What holds for labels holds for choices: lockstep, secure sums, resuming, approval by an owner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.errors import ConfigError
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import FailureCode, JobReply, JobRequest
from ifedicl.owner.approval import OwnFacts, explain
from ifedicl.owner.policy import load_client_settings
from ifedicl.owner.preview import preview
from ifedicl.owner.site import open_site
from ifedicl.runs import RunOptions
from ifedicl.settings import Coordination, Method, changed, load_preset
from tests.support import tiny
from tests.support.choices import TASK, choices
from tests.support.endpoints import Asked
from tests.support.guarded import code
from tests.support.kind_federations import SECURE, SHORT, SIZES, assert_learnt_the_same, federated, owner_client, short
from tests.support.stopping import StopError, stop_after

HANDS = {name: choices(count, seed=seed) for seed, (name, count) in enumerate(SIZES.items())}


def learnt(backbone: Backbone, method: Method, options: RunOptions | None = None) -> Adapter:
    return federated(backbone, TASK, HANDS, method, options).adapter


@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
@pytest.mark.parametrize("branches", [True, False])
def test_clients_in_lockstep_learn_what_they_learn_in_turn(backbone: Backbone, branches: bool, loss: str) -> None:
    model = backbone if branches else replace(backbone, branch_limit=0)
    settings = short(calibration={**SHORT["calibration"], "loss": loss})
    together = RunOptions(Coordination(clients_in_a_pass=4))
    assert_learnt_the_same(learnt(model, settings, together), learnt(model, settings))


def test_secure_sums_give_nearly_what_the_open_mode_gives(backbone: Backbone) -> None:
    secure, opened = learnt(backbone, short(privacy=SECURE)), learnt(backbone, short())
    assert not secure.coefficients.is_identity
    np.testing.assert_allclose(secure.context.vectors, opened.context.vectors, atol=2e-3)
    rows = choices(12, seed=9)
    ours, theirs = (adapter.on_model(backbone).evaluate(rows).loss for adapter in (secure, opened))
    assert ours == pytest.approx(theirs, abs=0.1)


def test_a_stopped_run_goes_on_to_the_same_adapter_bit_for_bit(backbone: Backbone, tmp_path: Path) -> None:
    whole = learnt(backbone, short())

    file = tmp_path / "checkpoint"
    with pytest.raises(StopError):
        learnt(backbone, short(), RunOptions(checkpoint=file, observer=stop_after(1)))
    resumed = learnt(backbone, short(), RunOptions(checkpoint=file, resume=True))
    assert resumed.header_and_tensors()[1] == whole.header_and_tensors()[1]


@pytest.fixture
def client(tmp_path: Path, llama_folder: Path) -> Path:
    """The ``client.toml`` of an owner of choices."""
    rows = ({"text": row.text, "options": row.options, "label": row.which} for row in choices(40))
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return owner_client(tmp_path, llama_folder, TASK)


def test_an_owner_is_told_in_words_what_a_job_of_choices_gets(client: Path) -> None:
    own = OwnFacts.of(load_client_settings(client))
    assert own.model is not None
    manifest = Manifest.of(TASK, short(), own.model)
    facts, shown = explain(own, manifest), preview(own, manifest)
    assert facts["task"]["asks"] == "one of the example's own options"
    assert any("of right and of wrong options" in sentence for sentence in facts["would_leave"])
    assert shown["data"]["labels"] == {"2 options": 13, "3 options": 14, "4 options": 13}
    assert shown["task"]["rows_with_other_labels"] == 0
    labels = preview(own, Manifest.of(tiny.TASK, short(), own.model))
    assert labels["task"]["rows_with_other_labels"] == 40


def test_a_site_answers_jobs_of_the_kind_of_its_rows_only(client: Path) -> None:
    own = OwnFacts.of(load_client_settings(client))
    assert own.model is not None
    site = Asked(open_site(client, "north"))
    one_shot = changed(load_preset("one-shot"), {"holdout": {"selection": 0.3}}, "a test")
    manifest = Manifest.of(TASK, one_shot, own.model)
    assert site.handle(JobRequest(manifest)) == JobReply()
    assert code(site.handle(JobRequest(Manifest.of(tiny.TASK, one_shot, own.model)))) is FailureCode.BAD_TASK


def test_an_unknown_kind_of_rows_is_refused(client: Path) -> None:
    client.write_text(client.read_text().replace('"choose"', '"chose"'))
    with pytest.raises(ConfigError, match="allowed: classify, choose"):
        load_client_settings(client)
