"""A federation of separate processes over FLARE from which a site leaves, and another one's example goes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import load_backbone
from ifedicl.data import read_labelled
from ifedicl.federation.client import Client
from ifedicl.federation.client_keys import key_for
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.owner.policy import load_client_settings
from ifedicl.settings import load_settings
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.processes import Federation, output_of, owner_file

SITES = ("a", "b", "c")
ROUNDS, MORE = 2, 2


def write_config(folder: Path, name: str, model: Path, sites: tuple[str, ...]) -> Path:
    sections = f"""
        [holdout]
        selection = 0.3
        [calibration]
        batch_size = 4
        local_steps = 1
        [rounds]
        rounds = {ROUNDS}
        select_by = "last"
        [coordination]
        min_clients = 2
        deadline_seconds = 90
        """
    return tiny.write_config(folder / f"{name}.toml", model, sites, sections, seed=5, weighting="examples")


def never_held(folder: Path, model: Path) -> Outcome:
    """A run of the local engine over who stays, with the files and keys that they have now."""
    settings = load_settings(write_config(folder, "never", model, ("a", "c")))
    backbone = load_backbone(settings.model)
    clients = [
        Client(
            site, read_labelled(folder / f"{site}.jsonl"), backbone, secret=b"", split_key=key_for(site.encode() * 32, "split")
        )
        for site in ("a", "c")
    ]
    return Coordinator(engine_of(clients), settings.task, settings.method, backbone.shape).run()


@pytest.mark.soak
def test_sites_go_on_without_the_one_that_left_and_the_example_that_went(llama_folder: Path, tmp_path: Path) -> None:
    for number, site in enumerate(SITES):
        tiny.write_rows(tmp_path / f"{site}.jsonl", tiny.rows(12, seed=number))
    config = write_config(tmp_path, "config", llama_folder, SITES)
    with Federation(tmp_path, SITES) as federation:
        for site in SITES:
            text = owner_file(tmp_path / f"{site}.jsonl", llama_folder) + "    new_examples = 1\n"
            federation.client_file(site, text.replace('tasks = ["any"]', "tasks = []"))
            secret = Path(load_client_settings(federation.kits[site] / "client.toml").ledger.secret)
            secret.write_bytes(site.encode() * 32)
        federation.start("server", *SITES)
        federation.connected(*SITES)

        def approved(job: str, *sites: str) -> None:
            for site in sites:
                manifest, own = tmp_path / f"{job}.manifest.json", federation.kits[site] / "client.toml"
                output_of("policy", "approve", manifest, own)

        console = ("--console", federation.console)
        output_of("flare", "job", config, "--out", tmp_path / "job", "--interval", "0.2")
        approved("job", *SITES)
        output_of("flare", "submit", tmp_path / "job", *console, "--follow")

        federation.kill("b")  # its machine is gone for good
        rows = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "a.jsonl").write_text("".join(rows[:3] + rows[4:]))
        said = output_of(
            *("flare", "forget", tmp_path / "job", *console, "--client", "b", "--changed", "a", "--rounds", str(MORE)),
            *("--out", tmp_path / "forget"),
        )
        assert "who approves it" in said
        approved("forget", "a", "c")
        said = output_of("flare", "submit", tmp_path / "forget", *console, "--out", tmp_path / "adapter")
        assert "forgotten after round 2: all text of 1 sites, removed examples of 1; 2 rounds without it followed" in said

        adapter, never = Adapter.load(tmp_path / "adapter"), never_held(tmp_path, llama_folder)
        np.testing.assert_array_equal(adapter.context.vectors, never.context.vectors)
        note = {"round": ROUNDS, "clients_left": 1, "clients_changed": 1, "more_rounds": MORE}
        assert adapter.provenance["forgotten"] == [note]
        state = federation.state("config")
        assert state is not None
        assert state.round == ROUNDS + MORE
        lines = [json.loads(line) for line in (federation.kits["c"] / "ledger.jsonl").read_text().splitlines()]
        assert [line.get("kind") for line in lines].count("job_reply") == 2
