"""A job's rounds on the server: a folder for each run, with what a resume needs in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ifedicl import files
from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.engine import Engine
from ifedicl.federation.events import Event, each
from ifedicl.federation.journal import Journal
from ifedicl.federation.secure import around
from ifedicl.flare.jobs import JobSettings

CHECKPOINT = Path("checkpoint") / "state.safetensors"
ADAPTER = "adapter"
METRICS = "metrics.jsonl"


def run_job(engine: Engine, job: JobSettings, folder: Path, *, resume: bool, observer: Callable[[Event], None]) -> None:
    """Run all rounds, or what is left of them, and save the adapter.

    Args:
        engine: reaches the sites.
        job: its settings.
        folder: of the run.
        resume: go on from the checkpoint.
        observer: told of what happens.

    Raises:
        ConfigError: the run is there and no resume was asked for, or the privacy mode needs a package that is not installed.
        FederationError: too few sites gave a usable reply, or the job was stopped.
        StorageError: the disk refuses.
    """
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists() and not resume:
        remedy = "Go on with: ifedicl flare resume. Or give the job another name."
        raise ConfigError("job", [Fault("name", repr(job.name), "a name that no run on the server has", remedy)])
    if not checkpoint.exists():  # a resume with other settings is refused, and leaves the run's own as they are
        files.write_json(folder / "job.json", job.model_dump(mode="json"))
    journal = Journal(folder / METRICS, job.task, job.sites)
    watching = each(journal, observer)
    carrier = around(engine, job.method)
    coordinator = Coordinator(
        carrier,
        job.task,
        job.method,
        job.shape,
        coordination=job.coordination,
        checkpoint_file=checkpoint,
        observer=watching,
    )
    outcome = coordinator.run(resume=resume)
    # Adapters bring in transformers, which takes seconds to import; the first round need not wait for it.
    from ifedicl.federation.results import adapter_of

    adapter = adapter_of(outcome, job.task, job.method, job.model, job.fingerprint, len(job.sites))
    adapter.save(folder / ADAPTER)
    journal.finish(outcome.state, outcome.chosen_round, outcome.gate)
