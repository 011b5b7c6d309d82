"""A run that is done, and copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.command_line import run
from tests.support.run_folders import write_run


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """A folder with two clients' files, a test file, the config of a short run, and the run itself in ``run``."""
    folder = tmp_path_factory.mktemp("ran")
    sections = "[rounds]\nrounds = 2\n[calibration]\nbatch_size = 2\nlocal_steps = 1\n"
    config = write_run(folder, llama_folder, {"north": 12, "south": 12, "test": 12}, sections)
    assert run("run", config, "--out", folder / "run") == 0
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
