"""The coordinator's console: submits jobs and looks at them, over FLARE's admin connection."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.api_spec import InternalError, JobNotRunning, NoConnection, NoReply
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from ifedicl.errors import FederationError
from ifedicl.flare.kits import check_kit, party_of
from ifedicl.flare.names import STATUS

_OVER, _DONE = "FINISHED", "FINISHED:COMPLETED"
_LOOK = 1.0  # seconds between two looks at a job


@dataclass(frozen=True)
class JobRecord:
    """A job as the server knows it.

    Attributes:
        id: FLARE's.
        name: of the run.
        state: ``SUBMITTED``, ``RUNNING``, ``FINISHED:COMPLETED`` and others of FLARE.
    """

    id: str
    name: str
    state: str

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state.startswith(_OVER) or self.state in {"FAILED_TO_RUN", "ABANDONED"}

    @property
    def is_done(self) -> bool:
        """Whether it ended well."""
        return self.state == _DONE


class Console:
    """A session with the server."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def sites(self) -> list[str]:
        """Names of the sites that are connected."""
        return sorted(client.name for client in self._session.get_connected_client_list())

    def jobs(self) -> list[JobRecord]:
        """All jobs, the newest first."""
        found = self._session.list_jobs(reverse=True)
        return [JobRecord(str(job["job_id"]), str(job.get("job_name", "")), str(job.get("status", ""))) for job in found]

    def job(self, name: str | None = None) -> JobRecord:
        """The newest job, or the newest of a run.

        Raises:
            FederationError: there is none.
        """
        found = next((job for job in self.jobs() if name in (None, job.name)), None)
        if found is None:
            raise FederationError(
                f"the server knows no job{'' if name is None else f' {name!r}'}; send one: ifedicl flare submit"
            )
        return found

    def again(self, job: JobRecord) -> JobRecord:
        """The same job, as it stands now."""
        return next(item for item in self.jobs() if item.id == job.id)

    def submit(self, folder: Path) -> str:
        """Send a job folder, signed with the console's key; FLARE's id of it."""
        return str(self._session.submit_job(str(folder.resolve())))

    def status(self, job: JobRecord) -> dict[str, Any] | None:
        """What a running job says of itself; None where it does not run (yet, or any more)."""
        try:
            return dict(self._session.do_app_command(job.id, STATUS, None))
        except (JobNotRunning, InternalError, NoReply):  # the last two while it is still starting
            return None

    def rounds(self, job: JobRecord) -> Iterator[dict[str, Any]]:
        """The status of a job at each new round, until the job is over.

        Raises:
            FederationError: it did not end well.
        """
        shown = -1
        while not job.is_over:
            facts = self.status(job)
            if facts is not None and facts["round"] > shown:
                shown = facts["round"]
                yield facts
            time.sleep(_LOOK)
            job = self.again(job)
        if not job.is_done:
            raise FederationError(f"run {job.name} ended as {job.state}. The server's log says why: ifedicl flare logs KIT")

    def stop(self, job: JobRecord) -> None:
        """Abort a job; its checkpoint stays."""
        self._session.abort_job(job.id)


@contextmanager
def connected(kit: Path) -> Iterator[Console]:
    """A console for the kit of the coordinator.

    Raises:
        FederationError: it is another party's kit, or the server does not answer.
    """
    check_kit(kit)
    party, name = party_of(kit)
    if party != "console":
        raise FederationError(f"{kit} is the kit of a {party}; the console needs the one named after the coordinator's address")
    logging.getLogger("nvflare").setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # FLARE prints as it goes
            session = new_secure_session(name, str(kit.resolve()), timeout=15.0)
    except NoConnection as error:
        raise FederationError(f"the server does not answer ({error}). Is it started, and are its ports open?") from error
    try:
        yield Console(session)
    finally:
        session.close()
