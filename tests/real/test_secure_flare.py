"""Secure sums over FLARE: separate processes whose owners pinned each other, and the local engine's adapter bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import load_backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.driver import adapter_of
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.secure import summing_engine
from ifedicl.federation.secure.sum_client import identity_of
from ifedicl.kinds.classify import Example
from ifedicl.ledger.ledger import REPLY, SUMMED, read
from ifedicl.owner.own_files import split_key_of
from ifedicl.owner.policy import LedgerSettings, load_client_settings
from ifedicl.settings import TOGETHER, load_settings
from tests.support import tiny
from tests.support.endpoints import engine_over, secure_layer
from tests.support.processes import Federation, output_of, owner_file
from tests.support.run_folders import contents

SITES = ("a", "b", "c")


def rows_of(site: str) -> list[dict[str, str]]:
    return tiny.rows(16, seed=SITES.index(site))


def ledger_of(kit: Path) -> LedgerSettings:
    """The files beside an owner's ``client.toml``."""
    return load_client_settings(kit / "client.toml").ledger


def write_config(folder: Path, model: Path) -> Path:
    for site in SITES:
        tiny.write_rows(folder / f"{site}.jsonl", rows_of(site))
    sections = """
        [holdout]
        selection = 0.3
        [rounds]
        rounds = 2
        [coordination]
        deadline_seconds = 90
        [privacy]
        mode = "secure"
        min_examples = 4
        """
    return tiny.write_config(folder / "config.toml", model, SITES, sections, seed=5, weighting="examples")


def write_private_config(folder: Path, model: Path) -> Path:
    """A readout with noise, without rounds. The same examples are held out as in the other job."""
    (folder / "public.txt").write_text("".join(f"{row['text']}\n" for row in tiny.rows(12, seed=9)))
    sections = """
        [holdout]
        selection = 0.3
        [rounds]
        rounds = 0
        select_by = "accuracy"
        [readout]
        [coordination]
        deadline_seconds = 90
        [privacy]
        mode = "private"
        min_examples = 4
        [privacy.noise]
        epsilon = 8.0
        """
    path = tiny.write_config(folder / "private.toml", model, SITES, sections, seed=5, weighting="examples")
    path.write_text(path.read_text().replace("[data]", '[data]\npublic = "public.txt"'))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> tuple[Path, dict[str, Path], Path]:
    """A job of sums that ran to its end, and one with noise: everything's folder, the sites' kits, the first run's folder."""
    folder = tmp_path_factory.mktemp("sums")
    config, private = write_config(folder, llama_folder), write_private_config(folder, llama_folder)
    with Federation(folder, SITES) as federation:
        # No task and no model is listed: each owner approves the job.
        own = {site: owner_file(folder / f"{site}.jsonl", llama_folder).replace('["any"]', "[]") for site in SITES}
        public = f'[data]\npublic = "{folder / "public.txt"}"\n'
        allowed = "class_counts = true\nreadout_sums = true\n"
        own = {site: text.replace("[data]\n", public).replace("class_counts = true\n", allowed) for site, text in own.items()}
        for site in SITES:
            federation.client_file(site, own[site])
            # The owner's key divides the examples into roles: the same ones in each run of this test.
            Path(ledger_of(federation.kits[site]).secret).write_bytes(site.encode() * 32)
        files = {site: federation.kits[site] / "client.toml" for site in SITES}
        keys = {site: output_of("policy", "identity", files[site]).strip() for site in SITES}
        for site in SITES:
            peers = "".join(f'{other} = "{key}"\n' for other, key in keys.items() if other != site)
            federation.client_file(site, f"{own[site]}\n[sums.peers]\n{peers}")
        federation.start("server", *SITES)
        federation.connected(*SITES)
        output_of("flare", "job", config, "--out", folder / "job", "--interval", "0.2")
        for site in SITES:
            assert "approved" in output_of("policy", "approve", folder / "job.manifest.json", files[site])
        output_of("flare", "submit", folder / "job", "--console", federation.console)
        output_of("flare", "status", "config", "--console", federation.console, "--follow")
        output_of("flare", "job", private, "--out", folder / "noisy", "--interval", "0.2")
        for site in SITES:
            assert "approved" in output_of("policy", "approve", folder / "noisy.manifest.json", files[site])
        output_of("flare", "submit", folder / "noisy", "--console", federation.console)
        output_of("flare", "status", "private", "--console", federation.console, "--follow")
        shutil.copytree(federation.run_folder("private"), folder / "private")
        return folder, {site: federation.kits[site] for site in SITES}, federation.run_folder("config")


def test_the_adapter_of_sums_over_flare_is_the_local_engines_bit_for_bit(
    finished: tuple[Path, dict[str, Path], Path],
) -> None:
    folder, kits, run = finished
    settings = load_settings(folder / "config.toml")
    assert settings.privacy is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as every site has
    backbone = load_backbone(settings.model)
    clients = [
        Client(
            site,
            [Example(row["text"], row["label"]) for row in rows_of(site)],
            backbone,
            secret=site.encode(),
            split_key=split_key_of(ledger_of(kits[site])),
        )
        for site in SITES
    ]
    pins = {client.name: identity_of(client).public for client in clients}
    layers = [secure_layer(client, pins, settings.privacy) for client in clients]
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    outcome = Coordinator(summing_engine(engine_over(layers), settings.method), settings.task, settings.method, shape).run()
    torch.set_num_threads(threads)
    local = adapter_of(outcome, Manifest.of(settings.task, settings.method, shape), settings.model, len(SITES))
    local.save(folder / "local")
    assert contents(run / "adapter") == contents(folder / "local")
    assert set(outcome.state.client_vectors) == {TOGETHER}


def test_each_sites_ledger_says_what_went_into_the_sums_and_that_only_masked_messages_left(
    finished: tuple[Path, dict[str, Path], Path],
) -> None:
    _, kits, _ = finished
    for kit in kits.values():
        entries, _ = read(kit / "ledger.jsonl")
        assert {entry.facts["kind"] for entry in entries if entry.event == SUMMED} >= {"vectors_reply", "update_reply"}
        left = {entry.facts["kind"] for entry in entries if entry.event == REPLY}
        steps = {"sum_begin_reply", "sum_deal_reply", "sum_mask_reply", "sum_agree_reply", "sum_reveal_reply"}
        assert left == {"job_reply", "context_reply", *steps}


def test_a_job_with_noise_runs_over_flare_and_each_owners_ledger_counts_its_epsilon(
    finished: tuple[Path, dict[str, Path], Path],
) -> None:
    folder, kits, _ = finished
    adapter = Adapter.load(folder / "private" / "adapter")
    assert adapter.provenance["privacy"] == {"epsilon": 8.0, "delta": 1e-5, "of": "one example of one client"}
    for kit in kits.values():
        entries, _ = read(kit / "ledger.jsonl")
        spent = {entry.facts["kind"]: entry.facts["epsilon"] for entry in entries if entry.event == SUMMED}
        assert 7.9 < spent["noisy_statistics_reply"] <= 8.0
        assert 7.9 < spent["evaluate_reply"] <= 8.0
