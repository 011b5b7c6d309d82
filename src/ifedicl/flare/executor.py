"""The site's side of a FLARE job: one client and its model, opened once and kept for the whole job."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.apis.signal import Signal

from ifedicl.federation.handler import Endpoint
from ifedicl.flare.byte_endpoint import answer
from ifedicl.flare.names import CLIENT_FILE, PAYLOAD
from ifedicl.owner.site import open_site

_log = logging.getLogger(__name__)


class SiteExecutor(Executor):  # type: ignore[misc]
    """Hands each message to the site's client. Nothing that a job says decides which file is read or which model is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self._endpoint: Endpoint | None = None
        self._headers: dict[str, Any] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Open the client when the job starts, before anything is asked."""
        if event_type == EventType.START_RUN:
            self._open(Path(fl_ctx.get_engine().get_workspace().get_root_dir()), fl_ctx.get_identity_name())

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """One message of ours, and its reply."""
        self._headers = dict(shareable[ReservedHeaderKey.HEADERS])
        reply = Shareable()
        reply[PAYLOAD] = answer(self._endpoint, shareable.get(PAYLOAD))
        return reply

    def _open(self, folder: Path, name: str) -> None:
        start = time.perf_counter()
        try:
            self._endpoint = open_site(folder / CLIENT_FILE, name, overhead=self._added)
        except Exception:
            # FLARE would carry the text to the server. The owner finds it here; the server hears a code.
            _log.exception("the client of %s could not be opened; every request will be refused", name)
            return
        _log.info("model loaded, client %s is open after %.1f seconds", name, time.perf_counter() - start)

    def _added(self, frame: int) -> int:
        """Bytes that FLARE adds to a reply of so many: for the ledger, which is written before FLARE fills in its headers.

        They are taken to be as large as those of the request, which name the same job, task and party.
        """
        message = Shareable()
        message[PAYLOAD], message[ReservedHeaderKey.HEADERS] = bytes(frame), self._headers
        return len(message.to_bytes()) - frame
