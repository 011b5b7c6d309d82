"""The owner's two commands and its file: what a policy says, and what the ledger shows."""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest

from ifedicl.errors import ConfigError, FederationError, LedgerError
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import Failure, FailureCode, JobRequest, Reply, VectorsReply, VectorsRequest
from ifedicl.ledger.ledger import REPLY, read
from ifedicl.owner.approval import OwnFacts, manifest_of, read_job
from ifedicl.owner.endpoint import ClientEndpoint
from ifedicl.owner.new_file import new_client_file
from ifedicl.owner.policy import ClientSettings, Policy, load_client_settings
from ifedicl.owner.preview import preview
from ifedicl.owner.site import open_site
from ifedicl.settings import load_settings
from tests.support import tiny
from tests.support.command_line import printed, run
from tests.support.endpoints import Asked
from tests.support.engines import RecordingEngine
from tests.support.guarded import client_of
from tests.support.jobs import job_of
from tests.support.run_folders import write_run

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def config(tmp_path: Path, llama_folder: Path) -> Path:
    sections = """
    [holdout]
    selection = 0.3
    gate = 0.2
    [calibration]
    batch_size = 4
    local_steps = 2
    [rounds]
    rounds = 2
    """
    return write_run(tmp_path, llama_folder, {"north": 24, "south": 20}, sections)


@pytest.fixture
def client(config: Path, llama_folder: Path) -> Path:
    """As ``policy init --config`` writes it, with the owner's file named."""
    path = config.parent / "client.toml"
    (path.parent / "client.secret").write_bytes(b"owner".ljust(32))  # so that examples are always divided in the same way
    assert run("policy", "init", str(path), "--config", str(config)) == 0
    text = path.read_text().replace('"tickets.jsonl"', '"north.jsonl"')
    path.write_text(
        text.replace('"HuggingFaceTB/SmolLM2-135M-Instruct"', f'"{llama_folder}"\ndevice = "cpu"\ndtype = "float32"')
    )
    return path


def test_the_written_file_shows_every_setting_with_its_default(tmp_path: Path) -> None:
    """What is commented out and what is not name all there is, once."""
    text = new_client_file(None).text
    values = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    defaults = ClientSettings.model_validate(tomllib.loads(text))
    assert ClientSettings.model_validate(values).policy == defaults.policy == Policy()
    for section in ("data", "allow", "least", "most", "work", "ledger"):
        assert set(values[section]) == set(type(getattr(defaults, section)).model_fields), section


def test_init_writes_once_and_allows_nothing_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "client.toml"
    assert run("policy", "init", str(path)) == 0
    assert "ifedicl policy check" in capsys.readouterr().out
    assert load_client_settings(path).policy == Policy()
    assert run("policy", "init", str(path)) == 2
    assert "--force" in capsys.readouterr().err
    assert run("policy", "init", str(path), "--force") == 0


def test_init_with_a_config_allows_its_task_and_its_model_alone(client: Path, config: Path) -> None:
    allow, settings = load_client_settings(client).allow, load_settings(config)
    assert allow.tasks == (settings.task.digest,)
    assert len(allow.models) == 1
    assert not allow.model("0" * 64)


def test_all_faults_of_a_policy_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "client.toml").write_text(
        '[data]\nfile = ""\n[model]\nsource = "m"\n[allow]\ntasks = ["abc"]\nclass_count = true\n[least]\nexamples = 0\n'
        "[most]\nrounds = -1\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_client_settings(tmp_path / "client.toml")
    faults = {fault.field: str(fault) for fault in caught.value.faults}
    assert set(faults) == {"data.file", "allow.tasks.0", "allow.class_count", "least.examples", "most.rounds"}
    assert "Did you mean 'class_counts'" in faults["allow.class_count"]
    with pytest.raises(ConfigError, match="ifedicl policy init"):
        load_client_settings(tmp_path / "nowhere.toml")


def test_a_policy_cannot_be_changed_once_it_is_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Policy().allow.class_counts = True


def test_paths_of_a_client_file_are_taken_from_its_folder(client: Path) -> None:
    settings = load_client_settings(client)
    assert settings.data.file == str(client.parent / "north.jsonl")
    assert settings.ledger.file == str(client.parent / "ledger.jsonl")


def test_check_tells_what_a_run_would_get_and_why_not(client: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("policy", "check", str(client), "--config", str(config), "--json") == 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["task"]["template"] == "Text: {text}\nMood:"
    assert facts["task"]["allowed"]
    assert facts["model"]["allowed"]
    assert facts["data"]["labels"] == {"good": 12, "bad": 12}
    leaves = {name: item["leaves"] for name, item in facts["would_leave"].items()}
    assert leaves == {"vectors": True, "update": True, "evaluate": True, "compare": False}
    assert "class_counts" in facts["would_leave"]["compare"]["why"]
    assert tiny.examples(24, seed=24)[0].text not in json.dumps(facts)


def test_check_without_a_config_tells_the_rules_and_what_has_left(client: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = printed(capsys, "policy", "check", str(client), "--json")
    assert facts["policy"]["least"]["examples"] == 8
    assert facts["left_so_far"]["jobs"] == {}


def test_a_config_with_another_template_gets_nothing(client: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("Text:", "Is it Ms Jones?"))
    capsys.readouterr()
    assert run("policy", "check", str(client), "--config", str(config), "--json") == 2
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["would_leave"]) == {"everything"}
    assert "allow.tasks does not list" in facts["would_leave"]["everything"]["why"]


@pytest.mark.parametrize("case", ["as it is", "few examples", "by class", "gradients", "readout"])
def test_what_check_predicts_is_what_the_endpoint_then_does(
    client: Path, config: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the same policy, settings and data: each kind of request leaves or stays as it was foretold."""
    text, wanted = client.read_text(), config.read_text()
    if case == "few examples":
        text = text.replace("# examples = 8 ", "examples = 9 ").replace("# held_out = 4", "held_out = 9")
    if case == "by class":
        wanted += '\n[vectors]\nbalance = "class"\n'
        text = text.replace("# class_counts = false ", "class_counts = true ").replace("# group = 4", "group = 9")
    if case == "gradients":
        wanted += '\n[server]\nupdate = "gradient"\n'
    if case == "readout":
        wanted += "\n[readout]\n"
        text = text.replace("# class_counts = false ", "class_counts = true ").replace(
            "# readout_sums = false", "readout_sums = true"
        )
    client.write_text(text)
    config.write_text(wanted)
    own, settings = OwnFacts.of(load_client_settings(client)), load_settings(config)
    foretold = preview(own, manifest_of(read_job(config), own.model))["would_leave"]
    site = open_site(client, "north")
    shape = client_of(site).backbone.shape
    engine = RecordingEngine(LocalEngine([site]))
    with suppress(FederationError):  # of a single client, whose refusal ends the run
        Coordinator(engine, settings.task, settings.method, shape).run()
    left = [entry.facts["kind"] for entry in read(client.parent / "ledger.jsonl")[0] if entry.event == REPLY]
    assert left == [reply.kind for _, _, reply in engine.crossed if not isinstance(reply, Failure)]
    if "everything" in foretold:
        assert not left
        assert engine.crossed[0][2] == Failure(FailureCode(foretold["everything"]["code"]))
        return
    for _, request, reply in engine.crossed:
        if request.kind in foretold:
            verdict = foretold[request.kind]
            assert isinstance(reply, Failure) != verdict["leaves"], request.kind
            assert not isinstance(reply, Failure) or reply.code == verdict["code"], request.kind
    assert {"job", "vectors"} <= {request.kind for _, request, _ in engine.crossed}


# A site


def test_a_key_of_another_length_is_not_taken_for_one(client: Path) -> None:
    (client.parent / "client.secret").write_bytes(b"")
    with pytest.raises(ConfigError, match="0 bytes"):
        open_site(client, "north")


def vectors_from(site: ClientEndpoint, job: Manifest) -> Reply:
    """What a site sends of its vectors."""
    asked = Asked(site)
    asked.handle(JobRequest(job))
    return asked.handle(VectorsRequest(job.digest, ""))


def test_a_site_loads_its_model_once_and_keeps_its_secret(client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (client.parent / "client.secret").unlink()
    first = open_site(client, "north")
    secret = (client.parent / "client.secret").read_bytes()
    assert len(secret) == 33
    assert secret[32:] == b"L"  # a ledger exists
    assert (client.parent / "client.secret").stat().st_mode & 0o077 == 0
    job = job_of(tiny.method(calibration={"batch_size": 4}), client_of(first).backbone)
    reply = vectors_from(first, job)
    again = vectors_from(open_site(client, "north"), job)
    assert (client.parent / "client.secret").read_bytes() == secret
    assert isinstance(reply, VectorsReply)
    assert isinstance(again, VectorsReply)
    assert reply.cursor == again.cursor


def test_a_site_whose_ledger_was_changed_does_not_start(client: Path) -> None:
    open_site(client, "north")
    path = client.parent / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"north", b"nerth"))
    with pytest.raises(LedgerError):
        open_site(client, "north")


# The ledger's commands, on a run


@pytest.fixture
def finished(config: Path) -> Path:
    assert run("run", str(config), "--out", str(config.parent / "out"), "--json") == 0
    return config.parent / "out"


def test_a_run_leaves_a_whole_ledger_of_each_client_that_fits_the_coordinators_heads(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = str(finished / "checkpoint" / "heads.jsonl")
    exchanges = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for name in ("north", "south"):
        facts = printed(capsys, "ledger", "verify", str(finished / "ledgers" / f"{name}.jsonl"), "--heads", heads, "--json")
        sent = [item["bytes_up"] for item in exchanges if item.get("client") == name]
        assert facts["owner"] == name
        assert facts["heads_checked"] == len(sent)
        assert facts["entries_the_coordinator_never_had"] == 0
        assert run("ledger", "show", str(finished / "ledgers" / f"{name}.jsonl"), "--json") == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["bytes"] for line in lines if line["event"] == "reply"] == sent


def test_verify_tells_what_is_wrong_and_exits_with_6(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, heads = finished / "ledgers" / "north.jsonl", finished / "checkpoint" / "heads.jsonl"
    whole = path.read_bytes()
    assert run("ledger", "verify", str(path)) == 0
    assert "cannot be found without" in capsys.readouterr().out
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert run("ledger", "verify", str(path)) == 0
    assert run("ledger", "verify", str(path), "--heads", str(heads)) == 6
    assert "it was cut" in capsys.readouterr().err
    path.write_bytes(whole[:-30])
    assert run("ledger", "verify", str(path)) == 0
    assert "left by a crash" in capsys.readouterr().out
    path.write_bytes(whole.replace(b'"bytes":', b'"bytes":1', 1))
    assert run("ledger", "verify", str(path)) == 6
    assert "line 2" in capsys.readouterr().err


def test_show_prints_a_line_for_each_entry(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("ledger", "show", str(finished / "ledgers" / "north.jsonl")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "opened" in lines[0]
    assert "job_reply" in lines[1]
    assert "vectors_reply" in lines[2]
    assert "means[1, 3, 2, 32]" in lines[2]


def test_no_row_of_the_data_stands_in_a_ledger_or_among_the_heads(finished: Path) -> None:
    written = b"".join(
        path.read_bytes() for path in [*(finished / "ledgers").iterdir(), finished / "checkpoint" / "heads.jsonl"]
    )
    for count in (24, 20):
        assert not [row.text for row in tiny.examples(count, seed=count) if row.text.encode() in written]
        assert not [row.key for row in tiny.examples(count, seed=count) if row.key.encode() in written]


def test_inspecting_a_config_tells_owners_what_to_allow(config: Path, client: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = printed(capsys, "inspect", str(config), "--json")
    allow = load_client_settings(client).allow
    assert allow.task(facts["for_each_owner"]["allow.tasks"])
    assert allow.model(facts["for_each_owner"]["allow.models"])
