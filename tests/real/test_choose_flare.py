"""Choices over FLARE: separate processes end with the local engine's adapter bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import load_backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator
from ifedicl.owner.own_files import split_key_of
from ifedicl.owner.policy import load_client_settings
from ifedicl.settings import load_settings
from tests.support.choices import choices
from tests.support.endpoints import engine_of
from tests.support.processes import Federation, output_of, owner_file

SITES = ("a", "b")
ROWS = {site: choices(30, seed=seed) for seed, site in enumerate(SITES)}


def write_config(folder: Path, model: Path) -> Path:
    for site, rows in ROWS.items():
        lines = ({"text": row.text, "options": row.options, "label": row.which} for row in rows)
        (folder / f"{site}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "config.toml"
    path.write_text(
        'preset = "subspace"\nseed = 5\n[task]\nkind = "choose"\nname = "places"\ntemplate = "Text: {text}\\nPlace:"\n'
        f'[model]\nsource = {json.dumps(str(model))}\ndevice = "cpu"\ndtype = "float32"\n'
        '[data]\nclients = { a = "a.jsonl", b = "b.jsonl" }\n[holdout]\nselection = 0.3\n'
        "[rounds]\nrounds = 2\n[calibration]\nbatch_size = 4\nlocal_steps = 2\n[coordination]\ndeadline_seconds = 90\n"
    )
    return path


@pytest.mark.soak
def test_sites_with_choices_give_the_local_engines_adapter(tmp_path: Path, llama_folder: Path) -> None:
    config = write_config(tmp_path, llama_folder)
    with Federation(tmp_path, SITES) as federation:
        secrets = {}
        for site in SITES:
            own = owner_file(tmp_path / f"{site}.jsonl", llama_folder).replace('["any"]', "[]")
            own = own.replace("[data]\n", '[data]\nkind = "choose"\n')
            federation.client_file(site, own.replace("class_counts = true\n", "class_counts = true\nreadout_sums = true\n"))
            secrets[site] = load_client_settings(federation.kits[site] / "client.toml").ledger
            Path(secrets[site].secret).write_bytes(site.encode() * 32)
        federation.start("server", *SITES)
        federation.connected(*SITES)
        output_of("flare", "job", config, "--out", tmp_path / "job", "--interval", "0.2")
        for site in SITES:
            explained = output_of("policy", "approve", tmp_path / "job.manifest.json", federation.kits[site] / "client.toml")
            assert "one of the example's own options" in explained
        output_of("flare", "submit", tmp_path / "job", "--console", federation.console)
        output_of("flare", "status", "config", "--console", federation.console, "--follow")
        adapter = Adapter.load(federation.run_folder("config") / "adapter")
        keys = {site: split_key_of(ledger) for site, ledger in secrets.items()}
    settings, threads = load_settings(config), torch.get_num_threads()
    torch.set_num_threads(1)  # as every site has
    try:
        backbone = load_backbone(settings.model)
        clients = [Client(site, ROWS[site], backbone, secret=site.encode(), split_key=keys[site]) for site in SITES]
        shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
        outcome = Coordinator(engine_of(clients), settings.task, settings.method, shape).run()
    finally:
        torch.set_num_threads(threads)
    assert adapter.context.digest == outcome.context.digest
    for name, array in outcome.coefficients.arrays.items():
        assert (adapter.coefficients.arrays[name] == array).all(), name
    assert adapter.task == settings.task
