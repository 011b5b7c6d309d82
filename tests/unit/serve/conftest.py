"""A worker, a server's state and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ifedicl.backbone.load import Backbone
from ifedicl.serve.catalog import Folder
from ifedicl.serve.meters import Meters
from ifedicl.serve.routes import ServerState
from ifedicl.serve.runviews import Runs
from ifedicl.serve.schemas import ModelFacts
from ifedicl.serve.worker import Worker
from tests.support import tiny
from tests.support.serve import LIMITS, asking, catalog_of


@pytest.fixture
def worker(backbone: Backbone) -> Iterator[Worker]:
    made = Worker(backbone, most_waiting=LIMITS.waiting, on_pass=lambda rows, seconds: None)
    yield made
    made.stop()


# The HTTP interface


@pytest.fixture
def state(worker: Worker, backbone: Backbone, tmp_path: Path) -> ServerState:
    for task, rank in ((tiny.TASK, 4), (tiny.MANY_TOKENS, 0)):
        tiny.drawn_adapter(backbone, task, rank=rank).save(tmp_path / task.name)
    catalog = catalog_of(backbone, Folder.of(str(tmp_path / "mood")), Folder.of(str(tmp_path / "place")))
    catalog.refresh(strict=True)
    meters = Meters()
    meters.watch(lambda: worker.waiting, lambda: len(catalog))
    facts = ModelFacts(name="tiny", fingerprint=backbone.fingerprint, dtype=backbone.dtype)
    return ServerState(facts, catalog, worker, meters, Runs(tmp_path / "runs"), LIMITS)


@pytest.fixture
def client(state: ServerState) -> TestClient:
    return asking(state)
