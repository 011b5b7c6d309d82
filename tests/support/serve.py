"""A server without a network, and ways to ask it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ifedicl.backbone import multi_adapter
from ifedicl.backbone.load import Backbone
from ifedicl.serve import worker as worker_module
from ifedicl.serve.api_keys import Keys
from ifedicl.serve.app import application
from ifedicl.serve.catalog import Catalog
from ifedicl.serve.hosts import Hosts
from ifedicl.serve.limits import Limits
from ifedicl.serve.routes import ServerState
from tests.support import tiny

TEXTS = list(tiny.SENTENCES)
LIMITS = Limits(texts=8, characters=200, body_bytes=4096, waiting=24, seconds=5.0)


class PausedPasses:
    """Forward passes wait for :meth:`resume`; ``passes`` lists their numbers of rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[int] = []
        self._go = threading.Event()
        self.begun = threading.Event()

        def paused(backbone: Backbone, rows: list[multi_adapter.Asked]) -> Any:
            self.begun.set()
            assert self._go.wait(10)
            self.passes.append(len(rows))
            return multi_adapter.mixed_log_probabilities(backbone, rows)

        monkeypatch.setattr(worker_module, "mixed_log_probabilities", paused)

    def resume(self) -> None:
        """Let all passes go on."""
        self._go.set()


# The catalog


def catalog_of(backbone: Backbone, *sources: Any) -> Catalog:
    """A catalog whose adapters run on this model."""
    return Catalog(sources, backbone.fingerprint, lambda adapter: adapter.classifier(backbone).placed())


def asking(
    state: ServerState,
    keys: Keys | None = None,
    *,
    host: str = "127.0.0.1",
    name: str = "localhost:8000",
    allowed: Sequence[str] = (),
) -> TestClient:
    """A client of a server at ``host`` that calls it ``name``; ``allowed`` are its further names."""
    hosts = Hosts(host, allowed) if keys is None or allowed else None
    return TestClient(application(state, keys, hosts), base_url=f"http://{name}", raise_server_exceptions=False)


def fault(answer: Any) -> tuple[int, str, str]:
    """Status, code and message; every error has the same form."""
    body = answer.json()
    assert set(body) == {"error"}
    return answer.status_code, body["error"]["code"], body["error"]["message"]
