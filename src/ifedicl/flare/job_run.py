"""A job's rounds on the server, in a folder for each run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.checkpoint import load_of
from ifedicl.federation.driver import Federated, RunOptions, drive
from ifedicl.federation.engine import Engine
from ifedicl.federation.events import Event, each
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.state import State
from ifedicl.flare.jobs import JobSettings


def run_job(engine: Engine, job: JobSettings, path: Path, *, resume: bool, observer: Callable[[Event], None]) -> Federated:
    """Run all rounds in the folder ``path``, or with ``resume`` the rounds after its checkpoint, and save the adapter.

    A job with a removal goes on from the finished run in the folder.

    Raises:
        ConfigError: the folder has a run and ``resume`` is not set; it has none, or not the one that the removal is for; or the
            privacy mode needs a package that is not installed.
        FederationError: too few sites gave a usable reply, or the job was stopped.
        StorageError: a file cannot be written.
    """
    folder = RunFolder(path)
    if job.removal is not None:
        folder.check_finished("Only a run that the server has can forget. Submit the job first.")
    elif folder.is_resumable and not resume:
        remedy = "Continue it with: ifedicl flare resume. Or give the job another name."
        raise ConfigError("job", [Fault("name", repr(job.name), "a name that no run on the server has", remedy)])
    keeper = folder.settings_keeper("job.json", json.dumps(job.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    forgetting = None if job.removal is None else job.removal.forgetting(job.sites)
    options = RunOptions(job.coordination, resume=resume, observer=each(keeper, observer), forgetting=forgetting)
    journal = folder.journal(job.task, job.sites)

    def work(options: RunOptions) -> Federated:
        if (state := load_of(job.manifest.run, folder.checkpoint)) is not None:
            _check_belongs(job, state, resume=resume)
        return drive(engine, job.manifest, job.model, options)

    federated = folder.carry_out(work, options, journal)
    journal.finish(federated.outcome)
    return federated


def _check_belongs(job: JobSettings, state: State, *, resume: bool) -> None:
    """Check that a job goes on from this state, and asks nothing of a site that left.

    Raises:
        ConfigError: it does not.
    """
    if back := sorted(state.gone & set(job.sites)):
        remedy = "Take the last job that `ifedicl flare forget` wrote."
        raise ConfigError(
            "job", [Fault("sites", f"{', '.join(back)}, forgotten by run {job.name}", "sites that stayed", remedy)]
        )
    removal = job.removal
    if removal is None:
        return
    received = f"for the run after {removal.round} rounds, as schedule {removal.phases}"
    has = f"the server's run has {state.round} rounds and {state.phases} schedules"
    if removal.forgetting(job.sites).has_begun(state) and state.phases == removal.phases:
        if resume:
            return
        remedy = "The server has begun to forget this. Continue it with: ifedicl flare resume."
    elif (removal.round, removal.phases) == (state.round, state.phases + 1):
        return
    else:
        remedy = "Make it again with: ifedicl flare forget."
    raise ConfigError("job", [Fault("removal", received, has, remedy)])
