"""A job as it is submitted: two JSON files that name ifedicl's classes, and the settings. It contains no code."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from ifedicl import files
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.forgetting import Forgetting
from ifedicl.federation.manifest import Manifest
from ifedicl.flare.names import CONTROLLER, EXECUTOR, NAME_PATTERN, TASK
from ifedicl.kinds import TaskField
from ifedicl.settings import Coordination, Method, ModelSettings, RunSettings, Section, check_coordination, validated

_MARK = "meta.json"
_SERVER_FILE = Path("server") / "config" / "config_fed_server.json"
INTERVAL = 0.05
"""Default seconds between an idle site's polls for work."""


class Removal(Section):
    """What a finished run on the server is to forget, as :class:`~ifedicl.federation.forgetting.Forgetting` says.

    Attributes:
        round: completed rounds of the run.
        phases: its number of schedules, with this one.
    """

    left: tuple[str, ...] = Field(default=(), description="names of sites that left")
    changed: tuple[str, ...] = Field(default=(), description="names of sites that removed examples")
    rounds: int = Field(default=0, ge=0, description="rounds of calibration without the removed text; 0 or more")
    agreed: bool = False
    round: int = Field(ge=0, description="0 or more")
    phases: int = Field(ge=2, description="2 or more")

    def forgetting(self, stay: Sequence[str]) -> Forgetting:
        """The same, for the coordinator; ``stay`` are the sites that take part."""
        return Forgetting(frozenset(stay), frozenset(self.left), frozenset(self.changed), self.rounds, self.agreed)


class JobSettings(Section):
    """The settings of a run for the server, which loads no model.

    Attributes:
        name: of the run, and of its folder on the server.
        sites: in the order in which their replies are aggregated.
        coordination: stays on the server; it may differ in a resumed job.
        interval: seconds between an idle site's polls for work.
        removal: what a finished run of this name is to forget; None: a new run, or a resumed one.
    """

    name: str = Field(pattern=NAME_PATTERN, description="letters, digits, - and _; at most 63")
    sites: tuple[str, ...] = Field(min_length=1, description="names of sites, as in the project file")
    task: TaskField
    method: Method
    coordination: Coordination = Field(default_factory=Coordination)
    model: ModelSettings
    fingerprint: str
    layers: int
    width: int
    interval: float = Field(default=INTERVAL, gt=0.0, le=60.0, description="seconds, above 0 and at most 60")
    removal: Removal | None = None

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        check_coordination(self.method, self.coordination)
        return self

    @property
    def manifest(self) -> Manifest:
        """What each site's owner approves."""
        model, phases = (
            ModelShape(self.fingerprint, self.layers, self.width),
            1 if self.removal is None else self.removal.phases,
        )
        return Manifest.of(self.task, self.method, model, rounds=self.last_round, phases=phases)

    @property
    def last_round(self) -> int:
        """The round with which the job ends."""
        return self.method.rounds.rounds if self.removal is None else self.removal.round + self.removal.rounds

    def without(self, removal: Removal) -> Self:
        """The job that forgets in the run of this one.

        Raises:
            ConfigError: no site would be left.
        """
        sites = [site for site in self.sites if site not in removal.left]
        values = self.model_dump(mode="json") | {"sites": sites, "removal": removal.model_dump(mode="json")}
        return validated(type(self), values, "job")


def job_settings(settings: RunSettings, sites: Sequence[str], name: str, interval: float = INTERVAL) -> JobSettings:
    """The job of a config. The model's files must be on this machine; they are not loaded.

    Raises:
        ConfigError: a setting is not allowed.
        BackboneError: the model is not found.
    """
    from ifedicl.backbone.source import shape_of  # transformers takes seconds to import, and the server's job does not need it

    model = shape_of(settings.model)
    values = settings.model_dump(mode="json", include={"task", "coordination", "model"}) | {
        "name": name,
        "sites": list(sites),
        "method": settings.method.model_dump(mode="json"),
        "fingerprint": model.fingerprint,
        "layers": model.layers,
        "width": model.width,
        "interval": interval,
    }
    return validated(JobSettings, values, "job")


def write_job(settings: JobSettings, folder: Path, *, resume: bool = False) -> None:
    """Write the folder that ``ifedicl flare submit`` sends. An earlier job in ``folder`` is replaced.

    With ``resume`` the job continues from the run's checkpoint on the server.

    Raises:
        ConfigError: there are fewer sites than the settings need.
        StorageError: it cannot be written.
    """
    needed = settings.coordination.min_clients
    if needed > len(settings.sites):
        fault = Fault("coordination.min_clients", str(needed), f"1 to {len(settings.sites)}, the sites", "Name more sites.")
        raise ConfigError("job", [fault])
    meta = {
        "name": settings.name,
        "resource_spec": {},
        "min_clients": needed,
        "deploy_map": {"server": ["server"], "site": list(settings.sites)},
    }
    rounds = {"id": "rounds", "path": CONTROLLER, "args": {"job": settings.model_dump(mode="json"), "resume": resume}}
    asks = {"task_request_interval": settings.interval}
    server = {"format_version": 2, "server": asks, "workflows": [rounds], "components": []}
    site = {
        "format_version": 2,
        "default_task_fetch_interval": settings.interval,
        "executors": [{"tasks": [TASK], "executor": {"path": EXECUTOR, "args": {}}}],
        "components": [],
    }
    with files.new_folder(folder, mark=_MARK) as new:
        files.write_json(new / _MARK, meta)
        files.write_json(new / _SERVER_FILE, server)
        files.write_json(new / "site" / "config" / "config_fed_client.json", site)


def read_job(folder: Path) -> JobSettings:
    """The settings in a job's folder.

    Raises:
        ConfigError: it is not a job, or it names classes of another ifedicl version, which this version refuses to load.
    """
    try:
        workflow = json.loads((folder / _SERVER_FILE).read_text(encoding="utf-8"))["workflows"][0]
        controller, job = workflow["path"], workflow["args"]["job"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        fault = Fault("folder", str(folder), "a folder that `ifedicl flare job` wrote", "Give the submitted folder.")
        raise ConfigError("job", [fault]) from error
    if controller != CONTROLLER:
        received, allowed = f"{folder}, which names {controller}", f"a job that names {CONTROLLER}"
        remedy = (
            "Another version of ifedicl wrote this job. Write it again with `ifedicl flare job`, under a name that no run on "
            "the server has. To finish a run of that job, install that version"
        )
        raise ConfigError("job", [Fault("folder", received, allowed, remedy)])
    return validated(JobSettings, job, str(folder))


@contextmanager
def as_resume(folder: Path) -> Iterator[Path]:
    """A copy of a job's folder that continues from the checkpoint.

    Raises:
        ConfigError: as :func:`read_job` raises it.
    """
    job = read_job(folder)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "job"
        write_job(job, copy, resume=True)
        yield copy
