"""Names that server, sites and console share. Does not import FLARE."""

from __future__ import annotations

TASK = "ifedicl"
"""The only kind of FLARE task: a message of ifedicl, as bytes."""
PAYLOAD = "message"
"""The field of a FLARE message that holds these bytes."""
STATUS = "ifedicl.status"
"""The command by which the console asks a running job for its status."""

RESULT = "ifedicl.result.json"
"""The file in a job's folder on the server that says how the job ended. FLARE keeps the folder with the finished job."""

ADAPTER = "adapter"
"""The folder in a job's folder on the server that holds the adapter, for the console."""

_ROOM = "ifedicl.flare"
EXECUTOR = f"{_ROOM}.executor.SiteExecutor"
CONTROLLER = f"{_ROOM}.controller.RoundsController"
READMISSION = f"{_ROOM}.readmission.Readmission"

CLIENT_FILE = "client.toml"
"""The owner's file, in the site's kit folder."""
RUNS = "runs"
"""Folder of all runs, in the server's kit folder."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
"""Allowed names of projects, sites and runs."""
