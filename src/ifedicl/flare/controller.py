"""The server's side of a FLARE job: runs the coordinator. It loads no model."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client as FlareClient
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from ifedicl import files
from ifedicl.errors import IfediclError
from ifedicl.federation.events import Delivered, Event, RoundDone, each
from ifedicl.flare.job_run import run_job
from ifedicl.flare.jobs import JobSettings
from ifedicl.flare.names import ADAPTER, PAYLOAD, RESULT, RUNS, STATUS, TASK
from ifedicl.flare.status import Board
from ifedicl.flare.transport import SiteReply, TransportEngine
from ifedicl.settings import validated
from ifedicl.tracking.choice import Trackers

_log = logging.getLogger(__name__)
_SYNC_SECONDS = 2.0  # between two updates of the connected sites


class RoundsController(Controller):  # type: ignore[misc]
    """Runs one job over the sites that FLARE has connected."""

    def __init__(self, job: Mapping[str, Any], resume: bool = False) -> None:
        """Take the values of a `JobSettings`, checked when the job starts; with ``resume``, go on from the checkpoint."""
        super().__init__(task_check_period=0.05)
        self.job = job
        self.resume = resume

    def start_controller(self, fl_ctx: FLContext) -> None:
        pass

    def stop_controller(self, fl_ctx: FLContext) -> None:
        pass

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        folder = Path(fl_ctx.get_engine().get_workspace().get_root_dir()) / RUNS
        board: Board | None = None
        try:
            job = validated(JobSettings, self.job, "job")
            board = known = Board(job)
            fl_ctx.get_engine().register_app_command(STATUS, lambda _topic, _data, _context: known.facts)
            engine = TransportEngine(_FlareTransport(self, fl_ctx, abort_signal), job.sites)
            with Trackers.of(os.environ).observer(job.name, job.method) as tracked:
                observer = each(board.observe, _log_round, tracked)
                run = run_job(engine, job, folder / job.name, resume=self.resume, observer=observer)
            _log.info("run %s has ended after %d rounds; its adapter is in %s", job.name, run.outcome.state.round, RUNS)
            run.adapter.save(_own_folder(fl_ctx) / ADAPTER)
            self._keep(board.ended(run.outcome, str(folder / job.name / "adapter")), fl_ctx)
        except IfediclError as error:
            _log.error("the run cannot go on: %s", error)
            self._keep({"error": str(error)} if board is None else board.failed(str(error)), fl_ctx)
            self.system_panic(str(error), fl_ctx)

    def _keep(self, result: Mapping[str, Any], fl_ctx: FLContext) -> None:
        """Write how the job ended where the console finds it: nobody can ask a job that has ended."""
        files.write_json(_own_folder(fl_ctx) / RESULT, result)

    def process_result_of_unknown_task(
        self, client: FlareClient, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        _log.info("client %s: a reply arrived after the deadline of its step and is ignored", client.name)


def _own_folder(fl_ctx: FLContext) -> Path:
    """The job's folder, which FLARE keeps, and gives to the console, when the job has ended."""
    return Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id()))


def _log_round(event: Event) -> None:
    if isinstance(event, Delivered) and event.traffic.failure is not None:
        _log.warning("site %s, %s: %s", event.traffic.client, event.traffic.step, event.traffic.failure)
    if isinstance(event, RoundDone):
        _log.info("round %d of %d is done: %s", event.record.round, event.rounds, ", ".join(event.record.clients) or "start")


class _FlareTransport:
    """A :class:`~ifedicl.flare.transport.Transport` that sends FLARE tasks."""

    def __init__(self, controller: RoundsController, fl_ctx: FLContext, abort_signal: Signal) -> None:
        self._controller = controller
        self._context = fl_ctx
        self._abort_signal = abort_signal
        self._synced = time.monotonic()

    def send(self, wire: bytes, names: Sequence[str], inbox: Callable[[SiteReply], None]) -> Callable[[], None]:
        data = Shareable()
        data[PAYLOAD] = wire
        extra_down = len(data.to_bytes()) - len(wire)

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            result = client_task.result
            payload = result.get(PAYLOAD)
            reply = payload if isinstance(payload, bytes) else None
            inbox(SiteReply(client_task.client.name, reply, extra_down, len(result.to_bytes()) - len(reply or b"")))

        task = Task(TASK, data, result_received_cb=received)
        # FLARE ends the task only when all sites have answered. The engine cancels it at the deadline.
        self._controller.broadcast(task, self._context, targets=list(names), min_responses=len(names))
        return lambda: self._controller.cancel_task(task)

    def is_lost(self, name: str) -> bool:
        self._sync_sites()
        connected = {client.name for client in self._context.get_engine().get_clients()}
        return name not in connected or self._controller.get_client_disconnect_time(name) is not None

    def is_stopped(self) -> bool:
        return bool(self._abort_signal.triggered)

    def _sync_sites(self) -> None:
        """Update the connected sites. Only the main process knows the new token of a site that came back (`Readmission`)."""
        now = time.monotonic()
        if now - self._synced > _SYNC_SECONDS:
            self._synced = now
            self._context.get_engine().sync_clients_from_main_process()
