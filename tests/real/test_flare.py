"""Separate processes over FLARE: machines die, the network is cut, the server dies; and the adapter is the local engine's."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ifedicl.backbone.load import load_backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.driver import adapter_of
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.state import State
from ifedicl.kinds.classify import Example
from ifedicl.owner.own_files import split_key_of
from ifedicl.owner.policy import LedgerSettings, load_client_settings
from ifedicl.settings import load_settings
from tests.support import tiny
from tests.support.command_line import run
from tests.support.endpoints import engine_of
from tests.support.event_files import events_of
from tests.support.processes import Federation, output_of, owner_file, wait_for
from tests.support.run_folders import contents

CANARY = "patient Ilsebill Quandt 4711"
"""Stands where the label should be in a row of site c, so that its client raises an error with this text."""
SITES = ("a", "b", "c")
ROUNDS = 4
INTERVAL = "0.2"
"""Seconds between an idle site's questions for work: often enough, and little work for three processes."""
CUT = 6
"""Seconds without a network."""


def rows_of(site: str) -> list[dict[str, str]]:
    rows = tiny.rows(12, seed=SITES.index(site))
    for row in rows[2:] if site == "c" else ():
        row["label"] = CANARY
    return rows


def ledger_of(kit: Path) -> LedgerSettings:
    """The files beside an owner's ``client.toml``."""
    return load_client_settings(kit / "client.toml").ledger


def write_config(folder: Path, model: Path) -> Path:
    """One config for the local run and for the job; a round takes long enough to be killed in."""
    for site in SITES:
        tiny.write_rows(folder / f"{site}.jsonl", rows_of(site))
    sections = f"""
        [holdout]
        selection = 0.3
        [calibration]
        batch_size = 4
        local_steps = 50
        [rounds]
        rounds = {ROUNDS}
        [coordination]
        min_clients = 2
        deadline_seconds = 90
        """
    return tiny.write_config(folder / "config.toml", model, SITES, sections, seed=5)


def cached(folder: Path, out: str) -> list[str | Path]:
    """Options that ask the test's task cache, and write the adapter to the folder ``out``."""
    return ["--store", folder / "tasks.sqlite", "--federation", "clinics", "--out", folder / out]


@dataclass
class Story:
    """What happened.

    Attributes:
        folder: of everything.
        federation: still running.
        early: the checkpoint right after the server died.
        late: the last one.
        status: what the console saw while b was dead.
        printed: by the console.
    """

    folder: Path
    federation: Federation
    early: State
    late: State
    status: Mapping[str, Any]
    printed: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Iterator[Story]:
    """A site dies and comes back, the network is cut, the server dies and its run is resumed."""
    folder = tmp_path_factory.mktemp("federation")
    config = write_config(folder, llama_folder)
    with Federation(folder, SITES, relayed=True) as federation:

        def begun(number: int) -> None:
            """Wait until the sites are at work on the round after ``number`` finished ones."""
            journal = RunFolder(federation.run_folder("config")).metrics

            def look() -> bool:
                lines = journal.read_text().splitlines() if journal.exists() else []
                steps = [json.loads(line) for line in lines if line.startswith('{"event": "step"') and line.endswith("}")]
                return any((step["step"], step["round"]) == ("update", number) for step in steps)

            wait_for(f"the update of round {number + 1}", look, 120)

        for site in SITES:
            federation.client_file(site, owner_file(folder / f"{site}.jsonl", llama_folder))
            # The owner's key divides the examples into roles: the same ones in each run of this test.
            Path(ledger_of(federation.kits[site]).secret).write_bytes(site.encode() * 32)
        federation.server_options = ["--tensorboard", folder / "figures"]
        federation.start("server", *SITES)
        federation.connected(*SITES)
        printed = output_of("flare", "job", config, "--out", folder / "job", "--interval", INTERVAL)
        printed += output_of("flare", "submit", folder / "job", "--console", federation.console)

        begun(1)
        federation.kill("b")
        federation.start("b")
        status = federation.status()  # while the others wait

        begun(2)
        assert federation.relay is not None
        federation.relay.cut()
        time.sleep(CUT)
        federation.relay.mend()

        begun(3)
        federation.kill("server")
        early = federation.state("config")
        assert early is not None

        federation.start("server")
        federation.connected(*SITES)
        printed += output_of("flare", "resume", folder / "job", "--console", federation.console, *cached(folder, "resumed"))
        late = federation.state("config")
        assert late is not None
        yield Story(folder, federation, early, late, status, printed)


def test_the_adapter_is_bit_for_bit_the_local_engines_whatever_died_on_the_way(story: Story) -> None:
    settings = load_settings(story.folder / "config.toml")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as every site has
    backbone = load_backbone(settings.model)
    clients = [
        Client(
            site,
            [Example(row["text"], row["label"]) for row in rows_of(site)],
            backbone,
            secret=b"",
            split_key=split_key_of(ledger_of(story.federation.kits[site])),
        )
        for site in SITES
    ]
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    outcome = Coordinator(engine_of(clients), settings.task, settings.method, shape).run()
    torch.set_num_threads(threads)
    local = adapter_of(outcome, Manifest.of(settings.task, settings.method, shape), settings.model, len(SITES))
    local.save(story.folder / "local")
    adapter = story.federation.run_folder("config") / "adapter"
    assert contents(adapter) == contents(story.folder / "local")


def test_a_site_that_died_in_the_middle_of_a_round_answers_in_the_same_round(story: Story) -> None:
    exchanges = [item for item in story.late.traffic if item.client == "b" and item.round == 1 and item.step != "evaluate"]
    assert [(item.step, item.failure) for item in exchanges] == [
        ("update", "no_context"),
        ("job", None),
        ("context", None),
        ("update", None),
    ]
    assert all("b" in record.clients for record in story.late.history)


def test_a_network_that_is_cut_delays_a_round_and_loses_nothing(story: Story) -> None:
    exchanges = [item for item in story.late.traffic if item.round == 2]
    assert max(item.seconds for item in exchanges) > CUT
    assert {item.client for item in exchanges if item.failure is None} == {"a", "b"}


def test_a_server_that_died_goes_on_without_losing_a_finished_round(story: Story) -> None:
    assert story.early.round == 3
    assert story.late.round == ROUNDS
    assert story.late.history[:3] == story.early.history
    assert story.late.traffic[: len(story.early.traffic)] == story.early.traffic


def test_a_site_loads_its_model_once_for_a_whole_job(story: Story) -> None:
    # The first job and the resumed one; b was started once more in between.
    loads = {site: story.federation.printed(site).count("model loaded") for site in SITES}
    assert loads == {"a": 2, "b": 3, "c": 2}


def test_an_error_whose_text_holds_a_row_never_reaches_the_server(story: Story) -> None:
    assert CANARY in story.federation.printed("c")  # the owner reads what went wrong
    written = story.federation.written_by_server()
    assert len(written) > 20
    assert [str(path) for path, content in written.items() if CANARY.encode() in unzipped(content)] == []
    assert CANARY not in story.printed
    assert {item.failure for item in story.late.traffic if item.client == "c"} <= {"internal", "no_context", None}


def test_every_sites_ledger_and_what_the_server_had_of_it_fit_each_other(story: Story) -> None:
    heads = story.federation.run_folder("config") / "checkpoint" / "heads.jsonl"
    for site in SITES:
        ledger = story.federation.kits[site] / "ledger.jsonl"
        output_of("ledger", "verify", ledger, "--heads", heads)
        entries = [json.loads(line) for line in ledger.read_text().splitlines()]
        replies = [entry for entry in entries if entry["event"] == "reply"]
        kinds = [entry["kind"] for entry in replies]
        assert kinds[0] == "job_reply"
        assert "failure" not in kinds
        if site == "c":  # its client raises an error wherever it needs the examples
            assert set(kinds) == {"job_reply", "context_reply"}
            assert any("internal" in entry["codes"] for entry in entries if entry["event"] == "refused")
        else:
            assert kinds.count("update_reply") >= ROUNDS
        assert all(entry["engine_bytes"] > 100 for entry in replies)


def test_status_tells_rounds_losses_bytes_and_who_answered(story: Story) -> None:
    assert {"a", "c"} <= set(story.status["connected"])
    now = story.status["now"]
    assert (now["run"], now["rounds"], now["round"]) == ("config", ROUNDS, 1)
    assert (now["step"], now["asked"]) == ("update", len(SITES))
    assert not {"b", "c"} & set(now["answered"])  # dead, and refused
    assert now["sites"]["c"]["last"] == "internal"
    assert now["train_loss"] > 0
    assert now["held_out_loss"] > 0
    assert now["sites"]["a"]["bytes_up"] > 200
    assert now["sites"]["a"]["carrier_bytes"] > 1000
    assert f"{ROUNDS} rounds in" in story.printed
    assert "FINISHED:COMPLETED" in story.printed


def test_the_adapter_comes_to_the_console_and_the_next_request_for_it_sends_no_job(story: Story) -> None:
    ours, server = story.folder / "resumed", story.federation.run_folder("config") / "adapter"
    assert contents(ours) == contents(server)
    before = story.federation.status()["job"]
    again = output_of(
        "flare", "submit", story.folder / "job", "--console", story.federation.console, *cached(story.folder, "hit")
    )
    assert again.startswith("task cache: exact: same federation, model, prompt, labels and form: version 1")
    assert contents(story.folder / "hit") == contents(server)
    assert story.federation.status()["job"] == before
    listed = json.loads(output_of("tasks", "list", "--store", story.folder / "tasks.sqlite", "--json"))
    assert [(entry["federation"], entry["metrics"]["rounds"], entry["metrics"]["found"]) for entry in listed] == [
        ("clinics", ROUNDS, "miss")
    ]


def test_the_server_writes_figures_of_each_round_and_names_no_site(story: Story) -> None:
    """A round that the server's death interrupted is there once more after the resume."""
    written = events_of(story.folder / "figures" / "config")
    assert {step for step, _ in written["train_loss"]} == set(range(1, ROUNDS + 1))
    recorded = {record.round: record.train_loss for record in story.late.history}
    for step, value in written["train_loss"]:
        assert value == pytest.approx(recorded[step], rel=1e-6)
    assert not [name for name in written if name.startswith("client/")]


def test_nothing_of_flare_goes_to_tmp(story: Story) -> None:
    assert not Path("/tmp/nvflare").exists()  # noqa: S108
    assert (story.federation.kits["server"] / "jobs").is_dir()


def test_a_certificate_of_another_authority_is_turned_away(story: Story) -> None:
    federation = story.federation
    kit = federation.provision("other", ["mallory"], *federation.ports)["mallory"]
    (kit / "client.toml").write_text("")
    federation.start_as("mallory", kit, "uid=mallory")
    wait_for("a refusal", lambda: "CERTIFICATE_VERIFY_FAILED" in federation.printed("mallory"))
    assert "mallory" not in federation.printed("server")
    federation.kill("mallory")


def test_a_site_cannot_take_another_ones_name(story: Story) -> None:
    federation = story.federation
    before = federation.printed("server").count("New client b@")
    federation.start_as("impostor", federation.kits["c"], "uid=b")
    refusal = "authenticated as 'c' but claimed endpoint 'b'"
    wait_for("a refusal", lambda: refusal in federation.printed("server"))
    assert federation.printed("server").count("New client b@") == before
    federation.kill("impostor")


def test_a_second_start_of_the_server_is_refused_with_the_port(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    """FLARE would start it all the same, where no site reaches it."""
    assert run("flare", "start", story.federation.kits["server"]) == 8
    printed = capsys.readouterr().err
    assert re.search(r"port \d+: the server cannot listen there \(Address already in use\)", printed)
    assert "an earlier start of this kit" in printed


def test_a_kit_that_was_changed_does_not_start(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    kit = story.folder / "changed"
    shutil.copytree(story.federation.kits["a"] / "startup", kit / "startup")
    file = kit / "startup" / "fed_client.json"
    file.write_text(file.read_text().replace("localhost", "elsewhere"))
    assert run("flare", "start", kit) == 8
    assert "was changed: a file in startup/ differs" in capsys.readouterr().err


def unzipped(content: bytes) -> bytes:
    """A file's bytes, or those of all files in it where it is an archive: FLARE keeps finished jobs as one."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())
