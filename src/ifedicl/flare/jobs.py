"""A job as it is submitted: two JSON files that name our classes, and the settings. No code travels with it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ifedicl import files
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.assignment import Assignment
from ifedicl.flare.names import CONTROLLER, EXECUTOR, TASK
from ifedicl.settings import Coordination, Method, ModelSettings, RunSettings, Section, check_coordination, validated
from ifedicl.task import Task

_MARK = "meta.json"
_SERVER_FILE = Path("server") / "config" / "config_fed_server.json"
INTERVAL = 0.05
"""Seconds between an idle site's questions for work, where nothing else is said."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"


class JobSettings(Section):
    """What the server needs to run the rounds; it loads no model.

    Attributes:
        name: of the run, and of its folder on the server.
        coordination: stays on the server; a resumed job may bring another one.
        sites: in the order in which their replies are aggregated.
        interval: between an idle site's questions for work.
    """

    name: str = Field(pattern=_NAME, description="letters, digits, - and _; at most 63")
    sites: tuple[str, ...] = Field(min_length=1, description="names of sites, as in the project file")
    task: Task
    method: Method
    coordination: Coordination = Field(default_factory=Coordination)
    model: ModelSettings
    fingerprint: str
    layers: int
    width: int
    interval: float = Field(default=INTERVAL, gt=0.0, le=60.0, description="seconds, above 0 and at most 60")

    @model_validator(mode="after")
    def _is_carried(self) -> Self:
        if self.method.promises_noise:
            raise ValueError('privacy.mode "private" is not carried over FLARE yet, only played; set "open" or "secure"')
        return self

    @model_validator(mode="after")
    def _counts_a_sum_once(self) -> Self:
        check_coordination(self.method, self.coordination)
        return self

    @property
    def assignment(self) -> Assignment:
        """What the sites are asked, on the model that all of them must use."""
        return Assignment(self.task, self.method, ModelShape(self.fingerprint, self.layers, self.width))


def job_settings(settings: RunSettings, sites: Sequence[str], name: str, interval: float = INTERVAL) -> JobSettings:
    """A config as a job. The model must lie here; it is not loaded.

    Raises:
        ConfigError: a name is none, or twice there.
        BackboneError: there is no such model.
    """
    from ifedicl.backbone.load import shape_of  # transformers takes seconds to import, and the server's job needs it not

    model = shape_of(settings.model)
    values = {
        "name": name,
        "sites": list(sites),
        "task": settings.task.model_dump(mode="json"),
        "method": settings.method.model_dump(mode="json"),
        "coordination": settings.coordination.model_dump(mode="json"),
        "model": settings.model.model_dump(mode="json"),
        "fingerprint": model.fingerprint,
        "layers": model.layers,
        "width": model.width,
        "interval": interval,
    }
    return validated(JobSettings, values, "job")


def write_job(settings: JobSettings, folder: Path, *, resume: bool = False) -> None:
    """Write the folder that ``ifedicl flare submit`` sends.

    Args:
        settings: of the run.
        folder: replaced where it is a job already.
        resume: whether it goes on from the run's checkpoint on the server.

    Raises:
        ConfigError: there are fewer sites than the settings need.
        StorageError: it cannot be written.
    """
    needed = settings.coordination.min_clients
    if needed > len(settings.sites):
        fault = Fault("coordination.min_clients", str(needed), f"1 to {len(settings.sites)}, the sites", "Name more sites.")
        raise ConfigError("job", [fault])
    job = settings.model_dump(mode="json")
    with files.new_folder(folder, mark=_MARK) as new:
        files.write_json(new / _MARK, _meta(settings.name, settings.sites, needed))
        files.write_json(new / _SERVER_FILE, _server(job, settings.interval, resume=resume))
        files.write_json(new / "site" / "config" / "config_fed_client.json", _site(settings.interval))


def read_job(folder: Path) -> JobSettings:
    """The settings in a job's folder.

    Raises:
        ConfigError: it is no job of ours, or one that another version of ifedicl wrote: its classes have other names there, and
            servers and sites of this version would refuse to load them.
    """
    try:
        workflow = json.loads((folder / _SERVER_FILE).read_text(encoding="utf-8"))["workflows"][0]
        controller, job = workflow["path"], workflow["args"]["job"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        fault = Fault("folder", str(folder), "what `ifedicl flare job` wrote", "Name the folder that was submitted.")
        raise ConfigError("job", [fault]) from error
    if controller != CONTROLLER:
        received, allowed = f"{folder}, which names {controller}", f"a job that names {CONTROLLER}"
        remedy = (
            "Another version of ifedicl wrote this job. Write it again with `ifedicl flare job`, under a name that no run on "
            "the server has. To finish a run that it began, go back to that version"
        )
        raise ConfigError("job", [Fault("folder", received, allowed, remedy)])
    return validated(JobSettings, job, str(folder))


@contextmanager
def as_resume(folder: Path) -> Iterator[Path]:
    """A copy of a job's folder that goes on from the checkpoint.

    Raises:
        ConfigError: as :func:`read_job` raises it.
    """
    job = read_job(folder)
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary) / "job"
        write_job(job, again, resume=True)
        yield again


def _meta(name: str, sites: Sequence[str], needed: int) -> dict[str, Any]:
    return {
        "name": name,
        "resource_spec": {},
        "min_clients": needed,
        "deploy_map": {"server": ["server"], "site": list(sites)},
    }


def _server(job: dict[str, Any], interval: float, *, resume: bool) -> dict[str, Any]:
    rounds = {"id": "rounds", "path": CONTROLLER, "args": {"job": job, "resume": resume}}
    return {"format_version": 2, "server": {"task_request_interval": interval}, "workflows": [rounds], "components": []}


def _site(interval: float) -> dict[str, Any]:
    return {
        "format_version": 2,
        "default_task_fetch_interval": interval,
        "executors": [{"tasks": [TASK], "executor": {"path": EXECUTOR, "args": {}}}],
        "components": [],
    }
