"""A server without a network, and ways to ask it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyExample
from ifedicl.serve import turns
from ifedicl.serve import worker as worker_module
from ifedicl.serve.answering import ServerState
from ifedicl.serve.api_keys import Keys
from ifedicl.serve.app import application
from ifedicl.serve.catalog import Catalog, Folder
from ifedicl.serve.hosts import Hosts
from ifedicl.serve.limits import Limits
from ifedicl.serve.meters import Meters
from ifedicl.serve.runviews import Runs
from ifedicl.serve.schemas import ModelFacts
from ifedicl.serve.worker import Worker
from tests.support import tiny

TEXTS = list(tiny.SENTENCES)
LIMITS = Limits(texts=8, characters=200, body_bytes=4096, waiting=24, seconds=5.0)


def questions(texts: Sequence[str] = TEXTS, task: AnyTask = tiny.TASK) -> list[AnyExample]:
    """Texts as a server's thread takes them."""
    return [task.question_of({"text": text}, "text") for text in texts]


class PausedPasses:
    """What runs together waits for :meth:`resume`; ``passes`` lists the numbers of examples."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[int] = []
        self._go = threading.Event()
        self.begun = threading.Event()

        def paused(backbone: Backbone, together: Sequence[turns.Turn], on_pass: Callable[[], None]) -> Any:
            self.begun.set()
            assert self._go.wait(10)
            self.passes.append(len(together))
            return turns.scores_of(backbone, together, on_pass)

        monkeypatch.setattr(worker_module, "scores_of", paused)

    def resume(self) -> None:
        """Let all passes go on."""
        self._go.set()


# The catalog


def catalog_of(backbone: Backbone, *sources: Any) -> Catalog:
    """A catalog whose adapters run on this model."""
    return Catalog(sources, backbone.fingerprint, lambda adapter: adapter.on_model(backbone).placed())


def state_of(worker: Worker, backbone: Backbone, folder: Path, *adapters: Adapter) -> ServerState:
    """A server of these adapters, each under the name of its task; their folders and the runs are below ``folder``."""
    for adapter in adapters:
        adapter.save(folder / adapter.task.name)
    catalog = catalog_of(backbone, *(Folder.of(str(folder / adapter.task.name)) for adapter in adapters))
    catalog.refresh(strict=True)
    meters = Meters()
    meters.watch(lambda: worker.waiting, lambda: len(catalog))
    facts = ModelFacts(name="tiny", fingerprint=backbone.fingerprint, dtype=backbone.dtype)
    return ServerState(facts, catalog, worker, meters, Runs(folder / "runs"), LIMITS)


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


def served(adapter: Adapter, backbone: Backbone, folder: Path, body: Mapping[str, Any]) -> dict[str, Any]:
    """What a server of this adapter alone answers to ``body`` on the route of its kind, with the usual limits."""
    worker = Worker(backbone, most_waiting=64, on_pass=lambda rows, seconds: None)
    try:
        server = asking(replace(state_of(worker, backbone, folder, adapter), limits=Limits()))
        return dict(server.post(f"/v1/{adapter.task.kind}", json=dict(body)).raise_for_status().json())
    finally:
        worker.stop()


def fault(answer: Any) -> tuple[int, str, str]:
    """Status, code and message; every error has the same form."""
    body = answer.json()
    assert set(body) == {"error"}
    return answer.status_code, body["error"]["code"], body["error"]["message"]
