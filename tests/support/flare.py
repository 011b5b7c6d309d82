"""Clients behind a FLARE transport within the process, and jobs for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ifedicl.backbone.load import Backbone
from ifedicl.federation.client import Client
from ifedicl.federation.messages import Envelope, Request
from ifedicl.flare.byte_endpoint import answer
from ifedicl.flare.jobs import JobSettings
from ifedicl.flare.transport import SiteReply
from ifedicl.settings import Coordination, ModelSettings
from tests.support import tiny
from tests.support.endpoints import bare

SITES = ("a", "b", "c")


class ScriptedTransport:
    """Clients of this process behind a transport; ``spoil`` may change, hold back or delay what one of them answers."""

    def __init__(self, clients: Mapping[str, Client], spoil: Callable[[str, Request, bytes], bytes | None]) -> None:
        self.clients = clients
        self.spoil = spoil
        self.lost: set[str] = set()
        self.stopped = False
        self.cancelled = 0
        self._turn = threading.Lock()  # they share one model here

    def send(self, wire: bytes, names: Sequence[str], inbox: Callable[[SiteReply], None]) -> Callable[[], None]:
        """Ask the clients in a thread; calling the result counts as a cancellation."""

        def work() -> None:
            for name in names:
                with self._turn:
                    up = self.spoil(name, Envelope.from_bytes(wire).frame.request, answer(bare(self.clients[name]), wire))
                if up is not None:
                    inbox(SiteReply(name, up, 100, 200))

        threading.Thread(target=work).start()

        def cancel() -> None:
            self.cancelled += 1

        return cancel

    def is_lost(self, name: str) -> bool:
        """Whether the test has declared this client lost."""
        return name in self.lost

    def is_stopped(self) -> bool:
        """Whether the test has stopped the job."""
        return self.stopped


def job(backbone: Backbone, *, coordination: Coordination | None = None, **sections: Any) -> JobSettings:
    """A job of three sites; sections override."""
    return JobSettings(
        name="mood",
        sites=SITES,
        task=tiny.TASK,
        method=tiny.method(**sections),
        coordination=coordination or Coordination(),
        model=ModelSettings(source="here"),
        fingerprint=backbone.fingerprint,
        layers=backbone.layers,
        width=backbone.width,
    )


def project(folder: Path, **changes: str) -> Path:
    """A project file of two sites, with changed lines."""
    lines = {"name": '"p"', "coordinator": '"a@b.org"', "sites": '["a", "b"]'} | changes
    text = "\n".join(f"{name} = {value}" for name, value in lines.items())
    (folder / "project.toml").write_text(text + '\n[server]\nhost = "fl.example.org"\n')
    return folder / "project.toml"
