"""The coordinator's console: submits jobs and shows their status, over FLARE's admin connection."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nvflare.fuel.flare_api.api_spec import InternalError, JobNotRunning, NoConnection, NoReply
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from ifedicl.adapter import Adapter
from ifedicl.adapter.format import HEADER
from ifedicl.errors import FederationError
from ifedicl.flare.kit_folder import party_of
from ifedicl.flare.kits import check_kit
from ifedicl.flare.log_files import LOG, lines_of
from ifedicl.flare.names import ADAPTER, RESULT, STATUS

T = TypeVar("T")
_POLL_SECONDS = 1.0  # between two polls of a job's status
_PATIENCE_SECONDS = 30.0  # with a server that does not answer


@dataclass(frozen=True)
class JobRecord:
    """A job on the server: FLARE's id, the run's name, and FLARE's state, such as ``RUNNING`` or ``FINISHED:COMPLETED``."""

    id: str
    name: str
    state: str

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.state.startswith("FINISHED") or self.state in {"FAILED_TO_RUN", "ABANDONED"}

    @property
    def is_done(self) -> bool:
        """Whether the job ended without an error."""
        return self.state == "FINISHED:COMPLETED"


class Console:
    """A session with the server."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def sites(self) -> list[str]:
        """Names of the connected sites.

        Raises:
            FederationError: the server does not answer any more.
        """
        return sorted(client.name for client in _patiently(self._session.get_connected_client_list))

    def jobs(self) -> list[JobRecord]:
        """All jobs, the newest first.

        Raises:
            FederationError: the server does not answer any more.
        """
        found = _patiently(lambda: self._session.list_jobs(reverse=True))
        return [JobRecord(str(job["job_id"]), str(job.get("job_name", "")), str(job.get("status", ""))) for job in found]

    def job(self, name: str | None = None) -> JobRecord:
        """The newest job, or the newest of a run.

        Raises:
            FederationError: there is none.
        """
        found = next((job for job in self.jobs() if name in (None, job.name)), None)
        if found is None:
            named = "" if name is None else f" {name!r}"
            raise FederationError(f"the server has no job{named}; send one: ifedicl flare submit")
        return found

    def again(self, job: JobRecord) -> JobRecord:
        """The job with its current state."""
        return next(item for item in self.jobs() if item.id == job.id)

    def submit(self, folder: Path) -> str:
        """Send a job folder, signed with the console's key, and return FLARE's id of the job."""
        return str(self._session.submit_job(str(folder.resolve())))

    def status(self, job: JobRecord) -> dict[str, Any] | None:
        """The status of a job; None if it is not running, or does not answer now."""
        try:
            return dict(self._session.do_app_command(job.id, STATUS, None))
        except (JobNotRunning, InternalError, NoReply, NoConnection):  # a job that starts or ends gives the last three
            return None

    def rounds(self, job: JobRecord) -> Iterator[dict[str, Any]]:
        """The status of a job at each new round, until the job is over."""
        shown = -1
        while not job.is_over:
            facts = self.status(job)
            if facts is not None and facts["round"] > shown:
                shown = facts["round"]
                yield facts
            time.sleep(_POLL_SECONDS)
            job = self.again(job)

    def result(self, job: JobRecord) -> dict[str, Any] | None:
        """How a finished job ended, as its server wrote it; None if the job never began, or is of an earlier ifedicl."""
        with self._downloaded(job) as folder:
            found = next(iter(folder.rglob(RESULT)), None)
            return None if found is None else dict(json.loads(found.read_text(encoding="utf-8")))

    def adapter(self, job: JobRecord) -> Adapter:
        """The adapter of a finished job, from the server.

        Raises:
            FederationError: the job ended without one.
            AdapterError: what the server gave is no adapter of a known format.
        """
        with self._downloaded(job) as folder:
            found = next(iter(sorted(folder.rglob(f"{ADAPTER}/{HEADER}"))), None)
            if found is None:
                raise FederationError(f"run {job.name}: the server has no adapter of it. See: ifedicl flare status {job.name}")
            return Adapter.load(found.parent)

    def log(self, job: JobRecord) -> list[str]:
        """The server's log of a finished job, in lines; none if it never began."""
        with self._downloaded(job) as folder:
            return [line for file in sorted(folder.rglob(LOG)) for line in lines_of(file)]

    @contextmanager
    def _downloaded(self, job: JobRecord) -> Iterator[Path]:
        """The folder that the server kept of a finished job. It holds the server's files alone, nothing of a site."""
        with tempfile.TemporaryDirectory() as place:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(NoReply, InternalError):
                _patiently(lambda: self._session.download_job_result(job.id, place))
            yield Path(place)

    def stop(self, job: JobRecord) -> None:
        """Abort a job; its checkpoint stays."""
        self._session.abort_job(job.id)


def _patiently(ask: Callable[[], T]) -> T:
    """What the server answers; an answer that is lost is asked for again.

    Raises:
        FederationError: the server does not answer any more.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except NoConnection as error:
            if time.monotonic() >= until:
                raise FederationError(
                    f"the server does not answer any more ({error}). A job that runs goes on without this command. Once the "
                    "server answers, see: ifedicl flare status --follow"
                ) from error
        time.sleep(_POLL_SECONDS)


@contextmanager
def connected(kit: Path) -> Iterator[Console]:
    """A console that uses the coordinator's kit.

    Raises:
        FederationError: ``kit`` is not the console's, or the server does not answer.
    """
    check_kit(kit)
    party, name = party_of(kit)
    if party != "console":
        raise FederationError(f"{kit} is a {party}'s kit; the console needs the kit named after the coordinator's address")
    logging.getLogger("nvflare").setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # FLARE prints to standard output
            session = new_secure_session(name, str(kit.resolve()), timeout=15.0)
    except NoConnection as error:
        raise FederationError(
            f"the server does not answer ({error}). Check that it runs and that its ports are open"
        ) from error
    try:
        yield Console(session)
    finally:
        session.close()
