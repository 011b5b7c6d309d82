"""What several tests of real servers share: a tiny model and two adapters of it, in folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model``, and with the adapters ``mood`` (a subspace) and ``place`` (label words of several tokens)."""
    root = tmp_path_factory.mktemp("served")
    backbone = tiny.load(tiny.save_model(root / "model"))
    for task, rank in ((tiny.TASK, 4), (tiny.MANY_TOKENS, 0)):
        tiny.drawn_adapter(backbone, task, rank=rank, source=str(root / "model")).save(root / task.name)
    return root
