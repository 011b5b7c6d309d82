"""A run that is done, and copies of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.command_line import run


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """A folder with two clients' files, a test file, the config of a short run, and the run itself in ``run``."""
    folder = tmp_path_factory.mktemp("ran")
    for number, name in enumerate(("north", "south", "test")):
        rows = [{"text": row.text, "label": row.label} for row in tiny.examples(12, seed=number)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.toml").write_text(
        f"""
        [task]
        name = "mood"
        labels = ["good", "bad"]
        template = "Text: {{text}}\\nMood:"
        [model]
        source = "{llama_folder}"
        dtype = "float32"
        device = "cpu"
        [data]
        clients = {{ north = "north.jsonl", south = "south.jsonl" }}
        test = "test.jsonl"
        [rounds]
        rounds = 2
        [calibration]
        batch_size = 2
        local_steps = 1
        """
    )
    assert run("run", str(folder / "config.toml"), "--out", str(folder / "run")) == 0
    return folder


@pytest.fixture
def config(ran: Path, tmp_path: Path) -> Path:
    """The config in a copy of the folder, to do with as one likes."""
    shutil.copytree(ran, tmp_path / "copy")
    return tmp_path / "copy" / "config.toml"


@pytest.fixture
def finished(config: Path) -> Path:
    """The copied run's folder."""
    return config.parent / "run"
