"""A job as it is submitted: two JSON files that name our classes, and the settings. No code travels with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ifedicl import files
from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.assignment import ModelShape
from ifedicl.federation.engines.nvflare.names import CONTROLLER, EXECUTOR, TASK
from ifedicl.settings import Method, ModelSettings, Section
from ifedicl.task import Task

_MARK = "meta.json"
_INTERVAL = 0.05  # seconds between a site's questions for work
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class JobSettings(Section):
    """What the server needs to run the rounds; it loads no model.

    Attributes:
        name: of the run, and of its folder on the server.
        sites: in the order in which their replies are aggregated.
    """

    name: str = Field(pattern=_NAME.pattern, description="letters, digits, - and _; at most 63")
    sites: tuple[str, ...] = Field(min_length=1, description="names of sites, as in the project file")
    task: Task
    method: Method
    model: ModelSettings
    fingerprint: str
    layers: int
    width: int

    @property
    def shape(self) -> ModelShape:
        """Which model everyone must use."""
        return ModelShape(self.fingerprint, self.layers, self.width)


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
    needed = settings.method.rounds.min_clients
    if needed > len(settings.sites):
        fault = Fault("rounds.min_clients", str(needed), f"1 to {len(settings.sites)}, the sites", "Name more sites.")
        raise ConfigError("job", [fault])
    job = settings.model_dump(mode="json")
    with files.new_folder(folder, mark=_MARK) as new:
        files.write_json(new / _MARK, _meta(settings.name, settings.sites, needed))
        files.write_json(new / "server" / "config" / "config_fed_server.json", _server(job, resume=resume))
        files.write_json(new / "site" / "config" / "config_fed_client.json", _SITE)


def _meta(name: str, sites: Sequence[str], needed: int) -> dict[str, Any]:
    return {
        "name": name,
        "resource_spec": {},
        "min_clients": needed,
        "deploy_map": {"server": ["server"], "site": list(sites)},
    }


def _server(job: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    rounds = {"id": "rounds", "path": CONTROLLER, "args": {"job": job, "resume": resume}}
    return {"format_version": 2, "server": {"task_request_interval": _INTERVAL}, "workflows": [rounds], "components": []}


_SITE: dict[str, Any] = {
    "format_version": 2,
    "default_task_fetch_interval": _INTERVAL,
    "executors": [{"tasks": [TASK], "executor": {"path": EXECUTOR, "args": {}}}],
    "components": [],
}
