"""A worker, a server's state and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ifedicl.backbone.load import Backbone
from ifedicl.serve.answering import ServerState
from ifedicl.serve.worker import Worker
from tests.support import tiny
from tests.support.serve import LIMITS, asking, state_of


@pytest.fixture
def worker(backbone: Backbone) -> Iterator[Worker]:
    made = Worker(backbone, most_waiting=LIMITS.waiting, on_pass=lambda rows, seconds: None)
    yield made
    made.stop()


# The HTTP interface


@pytest.fixture
def state(worker: Worker, backbone: Backbone, tmp_path: Path) -> ServerState:
    adapters = [tiny.drawn_adapter(backbone, task, rank=rank) for task, rank in ((tiny.TASK, 4), (tiny.MANY_TOKENS, 0))]
    return state_of(worker, backbone, tmp_path, *adapters)


@pytest.fixture
def client(state: ServerState) -> TestClient:
    return asking(state)
