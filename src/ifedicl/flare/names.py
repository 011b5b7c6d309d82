"""Names that both sides and the console agree on. Imports nothing of FLARE."""

from __future__ import annotations

TASK = "ifedicl"
"""The one kind of FLARE task: a message of ours, as bytes."""
PAYLOAD = "message"
"""The field of a FLARE message that holds our bytes."""
STATUS = "ifedicl.status"
"""What the console asks a running job."""

_ROOM = "ifedicl.flare"
EXECUTOR = f"{_ROOM}.executor.SiteExecutor"
CONTROLLER = f"{_ROOM}.controller.RoundsController"
READMISSION = f"{_ROOM}.readmission.Readmission"

CLIENT_FILE = "client.toml"
"""The owner's file, in the site's kit folder."""
RUNS = "runs"
"""Folder of all runs, in the server's kit folder."""
