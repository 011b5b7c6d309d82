"""FLARE's rules at a site and at the server. Each start writes them again, so that a changed file has no effect.

A job brings no code (no role has the right ``byoc``) and names only ifedicl's classes. No console reads a site's files: no role
may run shell commands, and a site's log is not streamed. All files stay in the kit's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ifedicl import files
from ifedicl.flare.names import CONTROLLER, EXECUTOR, READMISSION

_ENFORCED = {"format_version": 2, "class_list_enforcement_mode": "enforce"}
_COMMON = "nvflare.app_common"
_SITE_COMPONENTS = {
    "resource_manager": f"{_COMMON}.resource_managers.passthrough_resource_manager.PassthroughResourceManager",
    "resource_consumer": f"{_COMMON}.resource_consumers.passthrough_resource_consumer.PassthroughResourceConsumer",
    "process_launcher": f"{_COMMON}.job_launcher.client_process_launcher.ClientProcessJobLauncher",
}
_LOST_AFTER = 45  # seconds without a heartbeat; a site sends one every 10


def write_site_rules(kit: Path, *, patience: float) -> None:
    """Write the rules of a site. After ``patience`` seconds without an answer a request is sent again.

    Raises:
        StorageError: they cannot be written.
    """
    resources = _ENFORCED | {
        "class_allow_list": [EXECUTOR],
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "communication_timeout": patience},
        "components": [{"id": name, "path": path, "args": {}} for name, path in _SITE_COMPONENTS.items()],
    }
    _write(kit, resources)


def write_server_rules(kit: Path) -> None:
    """Write the rules of the server.

    Raises:
        StorageError: they cannot be written.
    """
    storage = f"{_COMMON}.storages.filesystem_storage.FilesystemStorage"
    stored = {"path": storage, "args": {"root_dir": str(kit / "snapshots"), "uri_root": "/"}}
    snapshots = {"path": f"{_COMMON}.state_persistors.storage_state_persistor.StorageStatePersistor"}
    components: list[dict[str, Any]] = [
        {"id": "job_scheduler", "path": f"{_COMMON}.job_schedulers.job_scheduler.DefaultJobScheduler", "args": {"max_jobs": 1}},
        {
            "id": "job_manager",
            "path": "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
            "args": {"uri_root": str(kit / "jobs"), "job_store_id": "job_store"},
        },
        {"id": "job_store", "path": storage},
        {"id": "process_launcher", "path": f"{_COMMON}.job_launcher.server_process_launcher.ServerProcessJobLauncher"},
        {"id": "readmission", "path": READMISSION},
    ]
    server = {"admin_storage": "transfer", "max_num_clients": 100, "heart_beat_timeout": _LOST_AFTER, "admin_timeout": 10.0}
    resources = _ENFORCED | {
        "class_allow_list": [CONTROLLER],
        "servers": [server],
        "snapshot_persistor": snapshots | {"args": {"uri_root": "/", "storage": stored}},
        "components": [{"args": {}, **component} for component in components],
    }
    _write(kit, resources)


def authorization() -> dict[str, Any]:
    """The rights of FLARE's roles. A right that is not listed is denied."""
    rights = dict.fromkeys(("submit_job", "manage_job", "app_command", "download_job", "view"), "any")
    rights |= dict.fromkeys(("clone_job", "operate", "shell_commands", "byoc", "server-predeployed-flwr"), "none")
    return {"format_version": "1.0", "permissions": {"project_admin": rights}}


def _write(kit: Path, resources: dict[str, Any]) -> None:
    files.write_json(kit / "local" / "resources.json", resources)
    files.write_json(kit / "local" / "authorization.json", authorization())
