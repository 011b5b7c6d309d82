"""A job's rounds on the server, in a folder for each run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.driver import Federated, RunOptions, drive
from ifedicl.federation.engine import Engine
from ifedicl.federation.events import Event, each
from ifedicl.federation.run_folder import RunFolder
from ifedicl.flare.jobs import JobSettings


def run_job(engine: Engine, job: JobSettings, path: Path, *, resume: bool, observer: Callable[[Event], None]) -> Federated:
    """Run all rounds in the folder ``path``, or with ``resume`` the rounds after its checkpoint, and save the adapter.

    Raises:
        ConfigError: the folder has a run and ``resume`` is not set, or the privacy mode needs a package that is not installed.
        FederationError: too few sites gave a usable reply, or the job was stopped.
        StorageError: a file cannot be written.
    """
    folder = RunFolder(path)
    if folder.is_resumable and not resume:
        remedy = "Continue it with: ifedicl flare resume. Or give the job another name."
        raise ConfigError("job", [Fault("name", repr(job.name), "a name that no run on the server has", remedy)])
    keeper = folder.settings_keeper("job.json", json.dumps(job.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    options = RunOptions(coordination=job.coordination, resume=resume, observer=each(keeper, observer))
    journal = folder.journal(job.task, job.sites)
    federated = folder.carry_out(lambda options: drive(engine, job.manifest, job.model, options), options, journal)
    journal.finish(federated.outcome)
    return federated
