"""Owners on machines of their own who take part in secure sums only: identities exchanged, policies, ledgers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import cli
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.errors import ConfigError, TooFewClientsError
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import Failure, FailureCode, JobRequest, VectorsRequest
from ifedicl.federation.secure import summing_engine
from ifedicl.ledger.ledger import REPLY, SUMMED, read
from ifedicl.owner.new_file import new_client_file
from ifedicl.owner.policy import SumSettings, load_client_settings
from ifedicl.owner.site import open_site
from ifedicl.settings import Method
from tests.support import tiny
from tests.support.endpoints import Asked
from tests.support.guarded import client_of
from tests.support.jobs import job_of

NAMES = ("north", "south", "east")
METHOD = tiny.method(
    weighting="examples",
    rounds={"rounds": 2},
    calibration={"batch_size": 4},
    privacy={"mode": "secure", "min_examples": 4},
)


def identity(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["policy", "identity", str(path)])
    assert not stop.value.code
    return capsys.readouterr().out.strip()


def write(folder: Path, model: Path, sums: str = "", data: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    tiny.write_rows(folder / "rows.jsonl", tiny.rows(40, seed=len(folder.name)))
    # The owner's secret divides its examples into roles: here always in the same way.
    (folder / "client.secret").write_bytes(folder.name.encode().ljust(32, b"."))
    path = folder / "client.toml"
    path.write_text(
        f'[data]\nfile = "rows.jsonl"\n{data}[model]\nsource = "{model}"\ndevice = "cpu"\ndtype = "float32"\n'
        f'[allow]\ntasks = ["any"]\nmodels = ["any"]\n[least]\nexamples = 4\n{sums}'
    )
    return path


@pytest.fixture
def sites(tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Path]:
    """Three owners who have exchanged identities."""
    files = {name: write(tmp_path / name, llama_folder) for name in NAMES}
    keys = {name: identity(path, capsys) for name, path in files.items()}
    for name in NAMES:
        peers = "".join(f'{other} = "{key}"\n' for other, key in keys.items() if other != name)
        write(tmp_path / name, llama_folder, f"[sums]\n[sums.peers]\n{peers}")
    return files


def run(sites: dict[str, Path], method: Method = METHOD) -> Any:
    endpoints = [open_site(path, name) for name, path in sites.items()]
    backbone = client_of(endpoints[0]).backbone
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    return Coordinator(summing_engine(LocalEngine(endpoints), method), tiny.TASK, method, shape).run()


def test_owners_who_pinned_each_other_run_a_federation_of_sums(sites: dict[str, Path]) -> None:
    outcome = run(sites)
    assert outcome.state.round == METHOD.rounds.rounds
    assert np.isfinite(outcome.coefficients.scales).all()
    for path in sites.values():
        entries, _ = read(path.parent / "ledger.jsonl")
        assert [entry for entry in entries if entry.event == SUMMED]
        left = {entry.facts["kind"] for entry in entries if entry.event == REPLY}
        steps = {"sum_begin_reply", "sum_deal_reply", "sum_mask_reply", "sum_agree_reply", "sum_reveal_reply"}
        assert left == {"job_reply", "context_reply", *steps}


def test_owners_with_public_text_add_noise_where_a_job_promises_it(
    sites: dict[str, Path], llama_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    private = tiny.method(
        weighting="examples",
        rounds={"rounds": 0, "select_by": "accuracy"},
        holdout={"selection": 0.3},
        readout={},
        privacy={"mode": "private", "min_examples": 4, "noise": {"epsilon": 8.0}},
    )
    with pytest.raises(TooFewClientsError, match="other_mode"):
        run(sites, private)
    assert "data.public" in caplog.text
    for name, path in sites.items():
        sums = path.read_text().partition("[sums]")[2]
        (path.parent / "public.txt").write_text("".join(example.text + "\n" for example in tiny.examples(12, seed=3)))
        allowed = "[most]\nepsilon = 8.0\n[sums]"
        write(path.parent, llama_folder, allowed + sums, 'public = "public.txt"\n')
        path.write_text(path.read_text().replace("[least]", "class_counts = true\nreadout_sums = true\n[least]"))
        assert name in NAMES
    outcome = run(sites, private)
    assert outcome.state.readout_round == 0
    for path in sites.values():
        spent = [entry.facts["epsilon"] for entry in read(path.parent / "ledger.jsonl")[0] if entry.event == SUMMED]
        assert len(spent) == 2
        assert 7.9 < spent[-1] <= 8.0
    with pytest.raises(TooFewClientsError, match="refused"):
        run(sites)  # with most.epsilon, only noisy sums are answered


def test_an_owner_with_sums_answers_no_open_run(sites: dict[str, Path]) -> None:
    site = open_site(sites["north"], "north")
    manifest, asked = job_of(tiny.method(), client_of(site).backbone), Asked(site)
    assert asked.handle(JobRequest(manifest)) == Failure(FailureCode.OTHER_MODE)
    head = read(sites["north"].parent / "ledger.jsonl")[0][-1].head
    assert asked.handle(VectorsRequest(manifest.digest, ""), head) == Failure(FailureCode.OTHER_MODE)


def test_a_client_that_an_owner_did_not_pin_gets_no_share(sites: dict[str, Path]) -> None:
    text = sites["north"].read_text()
    sites["north"].write_text(re.sub(r'south = "\w+"', f'south = "{"0" * 64}"', text))
    # The sum is tried again without the client of that key: two clients are too few, and no share is revealed.
    with pytest.raises(TooFewClientsError, match=r"2 clients .*3 are needed.*\(south: protocol\)"):
        run(sites)
    for path in sites.values():
        entries, _ = read(path.parent / "ledger.jsonl")
        assert "sum_reveal_reply" not in {entry.facts.get("kind") for entry in entries}


def test_an_identity_is_the_same_each_time_and_another_for_each_owner(
    sites: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {identity(path, capsys) for path in sites.values()}
    assert len(keys) == len(NAMES)
    assert keys == {identity(path, capsys) for path in sites.values()}


def test_a_peer_that_is_no_identity_is_a_fault(tmp_path: Path, llama_folder: Path) -> None:
    path = write(tmp_path / "north", llama_folder, '[sums]\n[sums.peers]\nsouth = "abc"\n')
    with pytest.raises(ConfigError, match=r"sums\.peers"):
        load_client_settings(path)


def test_the_written_file_shows_the_sums_with_their_defaults(tmp_path: Path) -> None:
    text = new_client_file(None).text
    shown = re.sub(r"^# (?=\[sums\]|  [\[\w])", "", text, flags=re.MULTILINE)
    path = tmp_path / "client.toml"
    path.write_text(shown.replace("64 hexadecimal digits", "a" * 64))
    sums = load_client_settings(path).sums
    assert sums == SumSettings(peers={"clinic-b": "a" * 64})
