"""Brings a site that reconnects back into the running job. FLARE alone leaves it out until the next job."""

from __future__ import annotations

import logging
import threading

from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import RunProcessKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job
from nvflare.apis.job_scheduler_spec import DispatchInfo

_PATIENCE = 20.0  # seconds for the site to take the job
_log = logging.getLogger(__name__)


class Readmission(FLComponent):  # type: ignore[misc]
    """A component of the server's main process. It gives the job the new token of a site that registers again."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._tried: set[tuple[str, str]] = set()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.CLIENT_HEARTBEAT_PROCESSED:
            engine = fl_ctx.get_engine()
            for job_id, job in list(engine.job_runner.running_jobs.items()):
                self._check_sites(engine, job_id, job)

    def _check_sites(self, engine: object, job_id: str, job: Job) -> None:
        process = engine.run_processes.get(job_id)  # type: ignore[attr-defined]
        if process is None:
            return
        participants = process[RunProcessKey.PARTICIPANTS]
        sites = {site for names in job.get_deployment().values() for site in names}
        for token, client in list(engine.client_manager.get_clients().items()):  # type: ignore[attr-defined]
            with self._lock:
                if client.name not in sites or token in participants or (job_id, token) in self._tried:
                    continue
                self._tried.add((job_id, token))
            # In a thread: the site's heartbeat waits for this method to return.
            threading.Thread(target=self._readmit, args=(engine, job, client), daemon=True).start()

    def _readmit(self, engine: object, job: Job, client: Client) -> None:
        """Send the site the job, give the job the site's new token, and start the site's side."""
        app = next(name for name, sites in job.get_deployment().items() if client.name in sites)
        dispatch = {client.name: DispatchInfo(app_name=app, resource_requirements={}, token=None)}
        try:
            with engine.new_context() as fl_ctx:  # type: ignore[attr-defined]
                make_message = engine.job_runner._make_deploy_message  # type: ignore[attr-defined]  # noqa: SLF001
                message = make_message(job, job.get_application(app, fl_ctx), app, fl_ctx)
                engine.server.admin_server.send_requests_and_get_reply_dict({client.token: message}, timeout_secs=_PATIENCE)  # type: ignore[attr-defined]
                participants = engine.run_processes[job.job_id][RunProcessKey.PARTICIPANTS]  # type: ignore[attr-defined]
                for token in [token for token, known in participants.items() if known.name == client.name]:
                    del participants[token]
                participants[client.token] = client
                engine.start_client_job(job, dispatch, fl_ctx)  # type: ignore[attr-defined]
            _log.info("site %s is back in job %s", client.name, job.job_id)
        except Exception:
            _log.exception("site %s could not return to job %s", client.name, job.job_id)
