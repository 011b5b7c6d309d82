"""Secure mode as its user meets it: a config, `ifedicl inspect`, `ifedicl run`, its report, and what a package lacks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ifedicl.federation import checkpoint
from ifedicl.federation.run_folder import RunFolder
from ifedicl.ledger.ledger import REPLY, SUMMED, read
from ifedicl.ledger.receipts import check_heads, read_heads
from ifedicl.settings import TOGETHER
from tests.support.command_line import run
from tests.support.run_folders import FOUR, OPEN, SECURE, run_of_four

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("layers", ["", "[injection]\nfrom_depth = 0.5"], ids=["all layers", "the upper ones"])
def test_a_secure_run_from_config_to_report(
    tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str], layers: str
) -> None:
    config, folder = run_of_four(tmp_path, llama_folder, f"{SECURE}\n{layers}"), tmp_path / "run"
    assert run("inspect", str(config), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["mode"].startswith("secure: the coordinator sees sums over at least 3 clients")

    assert facts["leaves_a_client"][0].startswith("everything below goes into sums over clients")

    assert run("run", str(config), "--out", str(folder)) == 0
    printed = capsys.readouterr().out
    assert "Privacy mode secure: the coordinator sees sums over at least 3 clients" in printed
    page = (folder / "report.html").read_text()
    assert "Privacy mode secure" in page
    assert f"({TOGETHER})" not in page, "no single client is said to be the worst, and the rounds count the real ones"

    # What inspect said is what crossed, client by client, to a few digits of counts.
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    exchanges = [line for line in lines if line["event"] == "exchange"]
    assert {line["client"] for line in exchanges} == set(FOUR)
    expected = facts["bytes_per_client"]
    for step in ("job", "vectors", "context", "update", "evaluate", "compare"):
        for way in ("down", "up"):
            sent = {line[f"bytes_{way}"] for line in exchanges if line["step"] == step}
            most = 120 if (step, way) == ("vectors", "down") else 24  # no ledger's head is known at first
            assert max(abs(size - expected[f"{step}_sum_{way}"]) for size in sent) <= most, (step, way)

    header = json.loads((folder / "adapter" / "adapter.json").read_text())
    assert header["provenance"]["clients"] == len(FOUR), "the real ones, not the one that stands for their sum"
    saved = checkpoint.load(RunFolder(folder).checkpoint)
    assert saved is not None
    assert set(saved.client_vectors) == {TOGETHER}

    # Each owner's ledger tells what went into the sums and what left of it; the coordinator's heads fit it.
    heads = read_heads(folder / "checkpoint" / "heads.jsonl")
    for name in FOUR:
        entries, _ = read(RunFolder(folder).ledgers / f"{name}.jsonl")
        inside = {entry.facts["kind"] for entry in entries if entry.event == SUMMED}
        assert inside == {"vectors_reply", "update_reply", "evaluate_reply", "compare_reply"}
        outside = {entry.facts["kind"] for entry in entries if entry.event == REPLY}
        steps = {"sum_begin_reply", "sum_deal_reply", "sum_mask_reply", "sum_agree_reply", "sum_reveal_reply"}
        assert outside == {"job_reply", "context_reply", *steps}
        assert check_heads(entries, heads)[1] == 0, "the coordinator knows of the last one"


def test_an_open_run_says_so(tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_of_four(tmp_path, llama_folder, OPEN)
    assert run("run", str(config), "--out", str(tmp_path / "run")) == 0
    assert "Privacy mode open: the coordinator sees each client's replies." in capsys.readouterr().out


def test_too_few_clients_with_enough_examples_end_the_run_with_what_to_do(
    tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_of_four(tmp_path, llama_folder, SECURE.replace("min_examples = 4", "min_examples = 50"))
    assert run("run", str(config), "--out", str(tmp_path / "run")) == 8
    said = capsys.readouterr().err
    assert "0 clients have something to add, 3 are needed" in said
    assert "north: too_few" in said


def test_contradictions_are_reported_before_anything_is_read(
    tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_of_four(tmp_path, llama_folder, '[privacy]\nmode = "secure"\n', weighting="uniform")
    assert run("run", str(config), "--out", str(tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert 'weighting must be "examples"' in said


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("cryptography", "ifedicl.federation.secure", "ifedicl.secagg"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    config = run_of_four(tmp_path, llama_folder, SECURE)
    for command in (("run", str(config), "--out", str(tmp_path / "run")), ("inspect", str(config))):
        assert run(*command) == 2
        assert "pip install 'ifedicl[privacy]'" in capsys.readouterr().err
