"""The owner approves a job: what it is told, what it pins, and that nothing else is let through by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.errors import ConfigError, StorageError
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.manifest import Limits, Manifest
from ifedicl.federation.messages import FailureCode, JobReply, JobRequest, VectorsReply, VectorsRequest
from ifedicl.ledger.ledger import REPLY, read
from ifedicl.ledger.usage import CountedLedger
from ifedicl.owner.approval import OwnFacts, explain, manifest_of, read_job, write_manifest
from ifedicl.owner.endpoint import LedgerRecord, build_endpoint
from ifedicl.owner.own_files import approve_job, approved_jobs
from ifedicl.owner.policy import LedgerSettings, Policy, load_client_settings
from ifedicl.owner.site import open_site
from ifedicl.settings import load_settings
from tests.support import tiny
from tests.support.command_line import printed, run
from tests.support.endpoints import Asked
from tests.support.guarded import GRADIENTS, METHOD, asks, client_of, code, rules, scripted_client
from tests.support.run_folders import write_run

SECTIONS = """
    [holdout]
    selection = 0.3
    [calibration]
    batch_size = 4
    local_steps = 2
    [rounds]
    rounds = 2
    """


@pytest.fixture
def config(tmp_path: Path, llama_folder: Path) -> Path:
    return write_run(tmp_path, llama_folder, {"north": 24, "south": 20}, SECTIONS)


@pytest.fixture
def client(config: Path, llama_folder: Path) -> Path:
    """Of an owner whose rules list no task and no model."""
    path = config.parent / "client.toml"
    (path.parent / "client.secret").write_bytes(bytes(32))  # so that examples are always divided in the same way
    path.write_text(
        f'[data]\nfile = "north.jsonl"\n[model]\nsource = {json.dumps(str(llama_folder))}\ndevice = "cpu"\ndtype = "float32"\n'
    )
    return path


@pytest.fixture
def own(client: Path) -> OwnFacts:
    return OwnFacts.of(load_client_settings(client))


@pytest.fixture
def manifest(own: OwnFacts, config: Path) -> Manifest:
    return manifest_of(read_job(config), own.model)


@pytest.fixture
def job(manifest: Manifest, tmp_path: Path) -> Path:
    """The manifest's file, as the coordinator sends it."""
    return write_manifest(manifest, tmp_path / "JOB")


def pinned(client: Path) -> set[str]:
    """The digests of the approved jobs."""
    return set(approved_jobs(load_client_settings(client).ledger))


def test_a_job_that_no_rule_lists_is_refused_until_its_owner_approves_it(client: Path, job: Path, manifest: Manifest) -> None:
    """The client need not start again."""
    site = Asked(open_site(client, "north"))
    assert code(site.handle(JobRequest(manifest))) is FailureCode.REFUSED
    assert run("policy", "approve", job, client) == 0
    assert site.handle(JobRequest(manifest)) == JobReply()
    assert isinstance(site.handle(VectorsRequest(manifest.digest, "")), VectorsReply)
    assert isinstance(vectors_after_restart(client, manifest), VectorsReply)


def vectors_after_restart(client: Path, manifest: Manifest) -> Any:
    again = Asked(open_site(client, "north"))
    assert again.handle(JobRequest(manifest)) == JobReply()
    return again.handle(VectorsRequest(manifest.digest, ""))


OTHERS: dict[str, Callable[[Manifest], Manifest]] = {
    "one round more": lambda own: replace(own, limits=own.limits.model_copy(update={"rounds": own.limits.rounds + 1})),
    "another template": lambda own: replace(
        own, task=own.task.model_copy(update={"template": "Is it Ms Jones? {text}\nMood:"})
    ),
    "another seed": lambda own: replace(own, method=own.method.model_copy(update={"seed": 1})),
    "another model": lambda own: replace(own, model=replace(own.model, fingerprint="0" * 64)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_approval_of_one_job_allows_no_other(client: Path, manifest: Manifest, other: str) -> None:
    approve_job(load_client_settings(client).ledger, manifest.digest)
    site = Asked(open_site(client, "north"))
    changed = OTHERS[other](manifest)
    assert changed.digest != manifest.digest
    assert code(site.handle(JobRequest(changed))) is FailureCode.REFUSED
    assert site.handle(JobRequest(manifest)) == JobReply()


def test_approvals_add_up(client: Path, manifest: Manifest, own: OwnFacts) -> None:
    for change in (lambda own: own, OTHERS["one round more"]):
        approve_job(own.settings.ledger, change(manifest).digest)
    site = Asked(open_site(client, "north"))
    for wanted in (manifest, OTHERS["one round more"](manifest)):
        assert site.handle(JobRequest(wanted)) == JobReply()


def test_an_approval_takes_the_place_of_tasks_and_models_alone(tmp_path: Path) -> None:
    """A rule that is broken later holds as it did before."""
    strict = rules(allow={"tasks": (), "models": (), "gradient_sums": False})
    digests = {request.job for request in (asks(METHOD)["job"], asks(GRADIENTS)["job"]) if isinstance(request, JobRequest)}
    scripted: Any = scripted_client()
    record = LedgerRecord(CountedLedger(tmp_path / "ledger.jsonl", "clinic"))
    guard = Asked(build_endpoint(scripted, strict, record, None, {}, approved=lambda: digests))
    assert guard.handle(asks(METHOD)["job"]) == JobReply()
    assert code(guard.handle(asks(GRADIENTS)["job"])) is FailureCode.REFUSED


# What the owner is told


def test_approve_prints_what_leaves_how_often_and_how_much(
    client: Path, job: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("policy", "approve", job, client) == 0
    out = capsys.readouterr().out
    assert manifest.digest in out
    assert repr(manifest.task.template) in out
    assert f"model {manifest.model.fingerprint}: yours" in out
    assert "open: the coordinator sees each client's replies" in out
    assert "each round: its coefficients, its number of training examples, its mean training loss" in out
    assert "each evaluation: the number of held-out examples" in out
    assert "at most: 2 updates or gradient sums, 8 held-out figures, 2 vectors and readout sums; " in out
    assert "no bound on what is learned about one example (no ε)" in out
    assert "approved: this job is answered" in out
    assert pinned(client) == {manifest.digest}
    assert tiny.examples(24, seed=0)[0].text not in out


def test_approve_as_json_has_the_same_facts(
    client: Path, job: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = printed(capsys, "policy", "approve", job, client, "--json")
    assert facts["job"] == manifest.digest
    assert facts["approved"] is True
    assert facts["breaks"] == []
    assert facts["model"] == {"fingerprint": manifest.model.fingerprint, "yours": True}
    assert facts["task"]["template"] == manifest.task.template
    limits = {name: facts["at_most"][name] for name in Limits.model_fields}
    assert limits == manifest.limits.model_dump()
    assert facts["at_most"]["epsilon"] is None
    assert facts["held_out"] == {"selection": 0.3, "gate": 0.0}


def test_no_more_bytes_leave_in_a_run_than_approve_says(
    client: Path, config: Path, job: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    most = printed(capsys, "policy", "approve", job, client, "--json")["at_most"]["bytes_up"]
    site = open_site(client, "north")
    settings = load_settings(config)
    Coordinator(LocalEngine([site]), settings.task, settings.method, client_of(site).backbone.shape).run()
    left = [entry.facts["bytes"] for entry in read(client.parent / "ledger.jsonl")[0] if entry.event == REPLY]
    assert len(left) >= 7
    assert sum(left) <= most
    assert most <= 3 * sum(left)  # twice as many sums and figures, for interruptions


def test_a_job_with_noise_is_told_with_its_epsilon(own: OwnFacts, manifest: Manifest) -> None:
    """And not as one of an owner in open mode."""
    method = tiny.method(
        weighting="examples",
        holdout={"selection": 0.0},
        rounds={"rounds": 3, "select_by": "last"},
        server={"update": "gradient"},
        privacy={"mode": "private", "noise": {"epsilon": 2.5}},
    )
    facts = explain(own, replace(manifest, method=method))
    assert facts["at_most"]["epsilon"] == 2.5
    assert facts["mode"].startswith("private: ")
    assert any("[sums]" in reason for reason in facts["breaks"])


# What is not approved

BROKEN = {
    "gradients": ('\n[server]\nupdate = "gradient"\n', "", "allow.gradient_sums is false"),
    "class counts": ('\n[vectors]\nbalance = "class"\n', "", "allow.class_counts is false"),
    "few examples in a step": ("", "\n[least]\nstep = 5\n", "least.step is 5; a step of this job mixes 4 examples"),
    "many steps": ("", "\n[work]\nsteps = 1\n", "work.steps is 1; an update of this job takes 2 steps"),
    "many rounds": ("", "\n[most]\nrounds = 1\n", "most.rounds is 1; this job asks for 2"),
    "many figures": ("", "\n[most]\nfigures = 7\n", "most.figures is 7; this job asks for 8"),
    "no noise": ("", "\n[most]\nepsilon = 1.0\n", "most.epsilon is 1; this job has no DP guarantee"),
    "another mode": ("", "\n[sums]\n[sums.peers]\n", "[sums]: the job's mode is open"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_job_that_breaks_a_rule_is_not_approved(
    client: Path, config: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, ruled, reason = BROKEN[case]
    config.write_text(config.read_text() + asked)
    client.write_text(client.read_text() + ruled)
    assert run("policy", "approve", config, client) == 2
    out = capsys.readouterr().out
    assert "it breaks your rules and is not approved:" in out
    assert f"  - {reason}" in out
    assert not pinned(client)
    assert run("policy", "approve", config, client, "--json") == 2
    facts = json.loads(capsys.readouterr().out)
    assert (facts["approved"], len(facts["breaks"])) == (False, 1)
    assert not pinned(client)


def test_all_rules_that_a_job_breaks_are_listed(client: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client.write_text(client.read_text() + "\n[least]\nstep = 5\n[work]\nsteps = 1\n[most]\nrounds = 1\n")
    assert run("policy", "approve", config, client, "--json") == 2
    assert len(json.loads(capsys.readouterr().out)["breaks"]) == 3


def test_a_secure_job_is_not_approved_by_an_owner_in_open_mode(
    client: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secure = '\n[privacy]\nmode = "secure"\nmin_survivors = 2\ncolluders = 0\n'
    config.write_text(config.read_text().replace('"uniform"', '"examples"') + secure)
    assert run("policy", "approve", config, client) == 2
    assert "[sums]: the job's mode is secure" in capsys.readouterr().out
    assert not pinned(client)


def test_a_job_of_another_model_is_not_approved(
    client: Path, tmp_path: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_manifest(OTHERS["another model"](manifest), tmp_path / "OTHER")
    assert run("policy", "approve", path, client) == 2
    out = capsys.readouterr().out
    assert f"model {'0' * 64}: NOT the one in your client.toml" in out
    assert f"[model] in client.toml is {manifest.model.fingerprint}" in out
    assert not pinned(client)


def test_a_job_cannot_be_approved_where_the_model_is_missing(
    client: Path, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    text = client.read_text()
    start = text.index("source = ")
    client.write_text(text[:start] + f'source = "{tmp_path / "empty"}"' + text[text.index("\n", start) :])
    assert run("policy", "approve", job, client) == 2
    assert "model: the job's is " in capsys.readouterr().out
    assert not pinned(client)


def test_a_job_that_holds_out_other_fractions_than_the_last_one_is_not_approved(
    client: Path, config: Path, job: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("policy", "approve", job, client) == 0
    assert isinstance(vectors_after_restart(client, manifest), VectorsReply)
    config.write_text(config.read_text().replace("selection = 0.3", "selection = 0.31"))
    capsys.readouterr()
    assert run("policy", "approve", config, client) == 2
    assert "allow.new_splits is false; holdout.selection and gate are (0.31, 0.0)" in capsys.readouterr().out
    assert pinned(client) == {manifest.digest}


def test_a_dry_run_explains_and_pins_nothing(client: Path, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.read_bytes() for file in client.parent.iterdir() if file.is_file()}
    assert run("policy", "approve", job, client, "--dry-run") == 0
    assert "it breaks no rule; approve it without --dry-run" in capsys.readouterr().out
    assert not pinned(client)
    assert {file.name: file.read_bytes() for file in client.parent.iterdir() if file.is_file()} == before
    assert printed(capsys, "policy", "approve", job, client, "--dry-run", "--json")["approved"] is False
    client.write_text(client.read_text() + "\n[most]\nrounds = 1\n")
    assert run("policy", "approve", job, client, "--dry-run") == 2


# The manifest and the file of approved jobs


def test_a_job_is_named_by_its_manifest_by_its_folder_or_by_a_config(
    config: Path, job: Path, manifest: Manifest, own: OwnFacts, tmp_path: Path
) -> None:
    (tmp_path / "JOB").mkdir()
    assert job.name == "JOB.manifest.json"
    for path in (job, tmp_path / "JOB", config):
        assert manifest_of(read_job(path), own.model) == manifest
    assert manifest_of(read_job(job), None).digest == manifest.digest  # the coordinator's own file names the model
    unknown = manifest_of(read_job(config), None)
    assert unknown.model != manifest.model


@pytest.mark.parametrize("content", [None, b"", b"[]", b"null", b"{", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_manifest_is_an_error_with_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "JOB.manifest.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        manifest_of(read_job(path), None)
    assert caught.value.exit_code == 2


def test_a_manifest_with_a_field_too_many_or_of_another_format_is_refused(job: Path) -> None:
    values = json.loads(job.read_text())
    for changes, field in (({"format": 2}, "format"), ({"rows": []}, "rows"), ({"limits": {}}, "limits")):
        job.write_text(json.dumps(values | changes))
        with pytest.raises(ConfigError, match=field):
            manifest_of(read_job(job), None)


def test_check_tells_of_a_job_whether_it_is_approved_and_what_would_leave(
    client: Path, job: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("policy", "check", client, "--config", job, "--json") == 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["job"] == {"digest": manifest.digest, "approved": False, "limits": manifest.limits.model_dump()}
    assert set(facts["would_leave"]) == {"everything"}
    assert run("policy", "approve", job, client) == 0
    facts = printed(capsys, "policy", "check", client, "--config", job, "--json")
    assert facts["job"]["approved"] is True
    leaves = {kind: item["leaves"] for kind, item in facts["would_leave"].items()}
    assert leaves == {"vectors": True, "update": True, "evaluate": True}
    assert facts["would_leave"]["update"]["times"] == manifest.method.rounds.rounds


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2, "jobs": {}}', '{"format": 1, "jobs": []}'])
def test_a_damaged_file_of_approved_jobs_lets_nothing_out(
    client: Path, job: Path, manifest: Manifest, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    approved = client.parent / "approved.json"
    approved.write_text(content)
    assert code(Asked(open_site(client, "north")).handle(JobRequest(manifest))) is FailureCode.INTERNAL
    assert run("policy", "approve", job, client) == StorageError.exit_code
    assert "Remove it and approve again" in capsys.readouterr().err
    assert approved.read_text() == content


def test_the_default_policy_answers_only_what_is_approved(tmp_path: Path) -> None:
    settings = LedgerSettings(approved=str(tmp_path / "approved.json"))
    assert not approved_jobs(settings)
    shape = ModelShape("f" * 64, 2, 4)
    manifest = Manifest.of(tiny.TASK, tiny.method(calibration={"batch_size": 4}), shape)
    scripted: Any = scripted_client()
    record = LedgerRecord(CountedLedger(tmp_path / "ledger.jsonl", "clinic"))
    guard = Asked(build_endpoint(scripted, Policy(), record, None, {}, approved=lambda: approved_jobs(settings)))
    assert code(guard.handle(JobRequest(manifest))) is FailureCode.REFUSED
    approve_job(settings, manifest.digest)
    assert guard.handle(JobRequest(manifest)) == JobReply()
