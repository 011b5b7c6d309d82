"""The process of a server or of a site: FLARE, under our rules, with its files in the kit's folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from ifedicl.errors import FederationError
from ifedicl.flare.kits import check_kit, party_of
from ifedicl.flare.names import CLIENT_FILE
from ifedicl.flare.site_policy import write_server_rules, write_site_rules

_GET_TASK = "NVFLARE_GET_TASK_TIMEOUT"
_PATIENCE = {
    "NVFLARE_DEAD_CLIENT_GRACE_PERIOD": "15",  # of the server, after a site was missed
    _GET_TASK: "30",  # of a site that asks for work; FLARE's own 300 would outlast a short cut by far
    "NVFLARE_SUBMIT_TASK_RESULT_TIMEOUT": "60",
}
"""In seconds; what stands in the environment goes before."""


def command(kit: Path) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that start the party of ``kit``, after its rules were written.

    Raises:
        FederationError: it is no kit, or was changed; a site has no ``client.toml`` yet.
        StorageError: the rules cannot be written.
    """
    kit = kit.resolve()
    check_kit(kit)
    party, name = party_of(kit)
    module, settings = _PARTIES.get(party, ("", []))
    environment = _environment(kit)
    if party == "server":
        write_server_rules(kit)
    elif party == "site":
        if not (kit / CLIENT_FILE).is_file():
            raise FederationError(f"{kit / CLIENT_FILE} is missing: it says which data and which model this site holds")
        write_site_rules(kit, patience=float(environment[_GET_TASK]))
        settings = [*settings, f"uid={name}"]
    else:
        raise FederationError(f"{kit} is the console's kit; it needs no process. Start the server's and the sites' kits")
    arguments = [sys.executable, "-u", "-m", f"nvflare.private.fed.app.{module}", "-m", str(kit)]
    arguments += ["-s", f"fed_{module.split('.')[0]}.json", "--set", "secure_train=true", f"org={name}", *settings]
    return arguments, environment


def run(kit: Path) -> int:
    """Run the party of ``kit`` until it ends, or until this process gets SIGTERM or Ctrl-C; its exit code.

    Raises: as :func:`command`.
    """
    arguments, environment = command(kit)
    process = subprocess.Popen(arguments, env=environment, cwd=kit, start_new_session=True)

    def end(_signal: int, _frame: object) -> None:
        _end(process.pid)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return process.wait()


def _end(pid: int) -> None:
    """FLARE's main process and the job that it started. What a run needs is on the disk, so nothing has to be said first."""
    main = psutil.Process(pid)
    for process in (*main.children(recursive=True), main):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _environment(kit: Path) -> dict[str, str]:
    """A folder of its own for temporary files too: nothing goes to /tmp."""
    temporary = kit / "temporary"
    temporary.mkdir(exist_ok=True)
    return {**_PATIENCE, **os.environ, "TMPDIR": str(temporary)}


_PARTIES: dict[str, tuple[str, Sequence[str]]] = {
    "server": ("server.server_train", ["config_folder=config"]),
    "site": ("client.client_train", ["config_folder=config"]),
}
