"""README's walk with one's own data: three CSV files, a model in several files on this machine, and no network at all."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_socket import disable_socket, enable_socket
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import tiny
from tests.support.pages import console_lines, run_block

SITES = ("clinic-a", "clinic-b", "clinic-c")


@pytest.fixture
def _unplugged() -> Iterator[None]:
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()


@pytest.fixture
def sharded(tmp_path: Path, llama_folder: Path) -> Path:
    """A model in parts with an index, as those are stored that do not fit into one file."""
    folder = tmp_path / "big-model"
    AutoModelForCausalLM.from_pretrained(llama_folder).save_pretrained(folder, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def write_csv(path: Path, seed: int, count: int) -> None:
    """Labelled tickets; the number makes each text another one."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number, row in enumerate(tiny.rows(count, seed=seed)):
            rows.writerow([f"{row['text']} {seed}", ("urgent", "normal")[number % 2]])


@pytest.mark.usefixtures("_unplugged", "no_pictures")
def test_the_commands_of_readme_go_from_a_new_config_to_labels_and_figures(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "work"
    place.mkdir()
    lines = console_lines("README.md", "## Your own data")
    own = [line for line in lines if not line.startswith("pip ")]
    own = own[: next(number for number, line in enumerate(own) if "flare" in line)]
    assert [line.split()[1] for line in own] == ["init", "inspect", "run", "classify", "evaluate"]
    said = {}
    for line in own:
        said[line.split()[1]] = run_block(line, place, monkeypatch)
        if line == "ifedicl init":
            for number, site in enumerate(SITES):
                write_csv(place / f"{site}.csv", number, 40)
            write_csv(place / "test.csv", 9, 12)
            with (place / "test.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            (place / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            config = (place / "config.toml").read_text()
            clients = ", ".join(f'"{site}" = "{site}.csv"' for site in SITES)
            start, end = config.index("clients = {"), config.index("\n", config.index("clients = {"))
            config = config[:start] + f"clients = {{ {clients} }}" + config[end:]
            config = config.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(sharded))
            (place / "config.toml").write_text(config.replace("# rounds = 10", "rounds = 2"))
    assert "urgent 20, normal 20" in said["inspect"]
    assert "in all, for each client" in said["inspect"]
    assert re.search(r"time on this machine: about [\d.]+ (seconds|minutes) for all clients", said["inspect"])
    assert "adapter: runs/config/adapter" in said["run"]
    label, probability, text = said["classify"].strip().split("\t")
    assert (label in ("urgent", "normal"), text) == (True, "The lift has been stuck since Monday.")
    assert 0.5 <= float(probability) <= 1
    assert "12 examples" in said["evaluate"]
