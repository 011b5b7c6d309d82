"""The rules that FLARE works under at a site and at the server. They are written at every start, so that they are ours.

A job brings no code (``byoc`` is nobody's right), may name our classes only, and no console reads a site's files: shell
commands are nobody's right either, and a site's log is not streamed. All files stay in the kit's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ifedicl import files
from ifedicl.flare.names import CONTROLLER, EXECUTOR, READMISSION

_ENFORCED = {"format_version": 2, "class_list_enforcement_mode": "enforce"}
_APART = "nvflare.app_common"
_RESOURCES = [
    {"id": "resource_manager", "path": f"{_APART}.resource_managers.passthrough_resource_manager.PassthroughResourceManager"},
    {
        "id": "resource_consumer",
        "path": f"{_APART}.resource_consumers.passthrough_resource_consumer.PassthroughResourceConsumer",
    },
]
_LOST_AFTER = 45  # seconds without a sign of life; a site gives one every 10


def write_site_rules(kit: Path, *, patience: float) -> None:
    """Of a site.

    Args:
        kit: its folder.
        patience: seconds that a request may take before it is sent again.

    Raises:
        StorageError: they cannot be written.
    """
    launcher = {"id": "process_launcher", "path": f"{_APART}.job_launcher.client_process_launcher.ClientProcessJobLauncher"}
    resources = _ENFORCED | {
        "class_allow_list": [EXECUTOR],
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "communication_timeout": patience},
        "components": [_component(item) for item in (*_RESOURCES, launcher)],
    }
    _write(kit, resources)


def write_server_rules(kit: Path) -> None:
    """Of the server.

    Raises:
        StorageError: they cannot be written.
    """
    storage = f"{_APART}.storages.filesystem_storage.FilesystemStorage"
    kept = {"path": storage, "args": {"root_dir": str(kit / "snapshots"), "uri_root": "/"}}
    snapshots = {"path": f"{_APART}.state_persistors.storage_state_persistor.StorageStatePersistor"}
    components: list[dict[str, Any]] = [
        {"id": "job_scheduler", "path": f"{_APART}.job_schedulers.job_scheduler.DefaultJobScheduler", "args": {"max_jobs": 1}},
        {
            "id": "job_manager",
            "path": "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
            "args": {"uri_root": str(kit / "jobs"), "job_store_id": "job_store"},
        },
        {"id": "job_store", "path": storage},
        {"id": "process_launcher", "path": f"{_APART}.job_launcher.server_process_launcher.ServerProcessJobLauncher"},
        {"id": "readmission", "path": READMISSION},
    ]
    server = {"admin_storage": "transfer", "max_num_clients": 100, "heart_beat_timeout": _LOST_AFTER, "admin_timeout": 10.0}
    resources = _ENFORCED | {
        "class_allow_list": [CONTROLLER],
        "servers": [server],
        "snapshot_persistor": snapshots | {"args": {"uri_root": "/", "storage": kept}},
        "components": [_component(item) for item in components],
    }
    _write(kit, resources)


def authorization() -> dict[str, Any]:
    """Who may do what. FLARE's roles; a right that is not named is nobody's."""
    rights = {
        "submit_job": "any",
        "clone_job": "none",
        "manage_job": "any",
        "app_command": "any",
        "download_job": "any",
        "view": "any",
        "operate": "none",
        "shell_commands": "none",
        "byoc": "none",
        "server-predeployed-flwr": "none",
    }
    return {"format_version": "1.0", "permissions": {"project_admin": rights}}


def _component(item: dict[str, Any]) -> dict[str, Any]:
    return {"args": {}, **item}


def _write(kit: Path, resources: dict[str, Any]) -> None:
    files.write_json(kit / "local" / "resources.json", resources)
    files.write_json(kit / "local" / "authorization.json", authorization())
