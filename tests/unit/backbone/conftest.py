"""A checkpoint folder to do harm to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def model(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama to do harm to."""
    return shutil.copytree(llama_folder, tmp_path / "model")
