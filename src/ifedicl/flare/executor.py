"""The site's side of a FLARE job: one client and its model, loaded once for the whole job."""

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

from ifedicl.errors import IfediclError
from ifedicl.federation.handler import Endpoint
from ifedicl.flare.byte_endpoint import answer
from ifedicl.flare.names import CLIENT_FILE, PAYLOAD
from ifedicl.owner.site import open_site

_log = logging.getLogger(__name__)


class SiteExecutor(Executor):  # type: ignore[misc]
    """Passes each message to the site's client. No field of a job decides which file is read or which model is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self._endpoint: Endpoint | None = None
        self._headers: dict[str, Any] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.START_RUN:
            self._open(Path(fl_ctx.get_engine().get_workspace().get_root_dir()), fl_ctx.get_identity_name())

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        self._headers = dict(shareable[ReservedHeaderKey.HEADERS])
        reply = Shareable()
        reply[PAYLOAD] = answer(self._endpoint, shareable.get(PAYLOAD))
        return reply

    def _open(self, folder: Path, name: str) -> None:
        start = time.perf_counter()
        try:
            self._endpoint = open_site(folder / CLIENT_FILE, name, overhead=self._overhead)
        except IfediclError as error:
            _log.error("client %s: could not be opened; every request will be refused: %s", name, error)
            return
        except Exception:
            # FLARE would send the error's text to the server. It stays in the owner's log, and the server receives a code.
            _log.exception("client %s: could not be opened; every request will be refused", name)
            return
        _log.info("model loaded, client %s is open after %.1f seconds", name, time.perf_counter() - start)

    def _overhead(self, frame: int) -> int:
        """Bytes that FLARE adds to a reply of ``frame`` bytes.

        The ledger states them before FLARE adds its headers. The request's headers, of the same job, task and party, stand in.
        """
        message = Shareable()
        message[PAYLOAD], message[ReservedHeaderKey.HEADERS] = bytes(frame), self._headers
        return len(message.to_bytes()) - frame
