"""The folder of one run: paths, checks before a run, and writers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from ifedicl import files
from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.driver import Federated, RunOptions
from ifedicl.federation.events import Begun, Event, each
from ifedicl.federation.folder_lock import held
from ifedicl.federation.journal import Journal
from ifedicl.kinds.any_task import AnyTask

METRICS = "metrics.jsonl"
"""The journal. A folder with this file belongs to a run."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. It need not exist yet."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The coordinator's state."""
        return self.path / "checkpoint" / "state.safetensors"

    @property
    def metrics(self) -> Path:
        """The journal."""
        return self.path / METRICS

    @property
    def ledgers(self) -> Path:
        """The folder of the simulated clients' ledgers."""
        return self.path / "ledgers"

    @property
    def adapter(self) -> Path:
        """The adapter's folder, written at the end."""
        return self.path / "adapter"

    @property
    def report(self) -> Path:
        """The report, written at the end."""
        return self.path / "report.html"

    @property
    def is_resumable(self) -> bool:
        """Whether there is a checkpoint."""
        return self.checkpoint.exists()

    @property
    def has_begun(self) -> bool:
        """Whether a run has begun here, even if it stopped before its first checkpoint."""
        return self.is_resumable or self.metrics.exists()

    def check(self, *, resume: bool, more_rounds: int) -> None:
        """Check that a new run overwrites no other, and that a resume finds its run.

        Raises:
            ConfigError: it overwrites one, or finds none.
        """
        if resume and not self.has_begun:
            remedy = "Name the run's folder with --out, or leave --resume out to begin one."
            raise ConfigError("run", [Fault("out", str(self.path), "the folder of a run that has begun", remedy)])
        if not (resume or more_rounds):
            self._refuse_run()
        if more_rounds:
            self.check_finished("Run it first; more rounds go on from a finished run.")

    def check_finished(self, remedy: str = "Name the run's folder with --out.") -> None:
        """Check that there is a run that can go on.

        Raises:
            ConfigError: there is none; ``remedy`` says what to do.
        """
        if not self.is_resumable:
            raise ConfigError("run", [Fault("out", str(self.path), "the folder of a finished run", remedy)])

    def held(self) -> AbstractContextManager[None]:
        """While the block runs, nobody else runs in this folder.

        Raises:
            ConfigError: another run is going on in it.
        """
        return held(self.path)

    def _refuse_run(self) -> None:
        if self.is_resumable:
            remedy = "Go on with --resume, or choose another folder with --out."
            raise ConfigError("run", [Fault("out", str(self.path), "a folder without a run in it", remedy)])

    def settings_keeper(self, name: str, text: str) -> Callable[[Event], None]:
        """An observer that writes the settings of a new run to the file ``name``, once the run begins.

        A resume does not change the file, nor does a run that fails before it begins: the settings in a folder are those of its
        journal. If there is a file of that name but no run, it is not ours and stays.
        """
        is_ours = self.has_begun or not (self.path / name).exists()

        def observe(event: Event) -> None:
            if is_ours and event == Begun(None):
                files.write_text(self.path / name, text)

        return observe

    def journal(self, task: AnyTask, clients: Iterable[str]) -> Journal:
        """The journal of a run in this folder."""
        return Journal(self.metrics, task, clients)

    def carry_out(self, run: Callable[[RunOptions], Federated], options: RunOptions, journal: Journal) -> Federated:
        """Run with checkpoint and journal in this folder, and save the adapter here.

        The caller writes the journal's last lines, :meth:`Journal.finish`, after it has measured the adapter.

        Args:
            run: runs the federation.
            options: of the run; the folder adds its checkpoint and its journal.
            journal: from :meth:`journal`.

        Raises:
            ConfigError: another run is going on in the folder, or has ended there since :meth:`check`.
            StorageError: a file cannot be written.
            IfediclError: as ``run`` raises it.
        """
        with self.held():
            if not (options.resume or options.more_rounds or options.forgetting):
                self._refuse_run()
            federated = run(replace(options, checkpoint=self.checkpoint, observer=each(journal, options.observer)))
            federated.adapter.save(self.adapter)
        return federated
