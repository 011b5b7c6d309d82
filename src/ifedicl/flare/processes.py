"""The process of a server or of a site: FLARE with our rules and all files in the kit's folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from ifedicl.errors import FederationError
from ifedicl.flare.kit_folder import party_of, ports_of
from ifedicl.flare.kits import check_kit
from ifedicl.flare.names import CLIENT_FILE
from ifedicl.flare.site_policy import write_server_rules, write_site_rules
from ifedicl.tracking.choice import NONE, VARIABLES, Trackers

_GET_TASK = "NVFLARE_GET_TASK_TIMEOUT"
_PATIENCE = {
    "NVFLARE_DEAD_CLIENT_GRACE_PERIOD": "15",  # after a missing heartbeat of a site
    _GET_TASK: "30",  # for an answer to a site's poll; FLARE's default, 300, is too long after a short network failure
    "NVFLARE_SUBMIT_TASK_RESULT_TIMEOUT": "60",
}
"""In seconds; values in the environment take precedence."""


def command(kit: Path, trackers: Trackers = NONE) -> tuple[list[str], dict[str, str]]:
    """Write the party's rules, and return the command and the environment that start it; ``trackers`` are of the server.

    Raises:
        ConfigError: a package of a tracker is not installed.
        FederationError: ``kit`` is not a kit, or was changed; a site has no ``client.toml`` yet.
        StorageError: the rules cannot be written.
    """
    kit = kit.resolve()
    check_kit(kit)
    party, name = party_of(kit)
    temporary = kit / "temporary"  # not /tmp: all files stay in the kit
    temporary.mkdir(exist_ok=True)
    # A site has no trackers, and need not know where those of the server are.
    inherited = {variable: value for variable, value in os.environ.items() if variable not in VARIABLES}
    environment = {**_PATIENCE, **inherited, "TMPDIR": str(temporary)}
    settings = ["config_folder=config"]
    if party == "server":
        trackers.check()
        environment |= trackers.variables
        write_server_rules(kit)
        role, module = "server", "server.server_train"
    elif party == "site":
        if not (kit / CLIENT_FILE).is_file():
            raise FederationError(f"{kit / CLIENT_FILE} is missing. Write it: it names this site's data and model")
        write_site_rules(kit, patience=float(environment[_GET_TASK]))
        role, module = "client", "client.client_train"
        settings.append(f"uid={name}")
    else:
        raise FederationError(f"{kit} is the console's kit, which runs no process. Start the kits of the server and the sites")
    arguments = [sys.executable, "-u", "-m", f"nvflare.private.fed.app.{module}", "-m", str(kit)]
    arguments += ["-s", f"fed_{role}.json", "--set", "secure_train=true", f"org={name}", *settings]
    return arguments, environment


def run(kit: Path, trackers: Trackers = NONE) -> int:
    """Run the party of ``kit`` until it ends, or until this process gets SIGTERM or Ctrl-C, and return its exit code.

    ``trackers`` are of the server.

    Raises:
        ConfigError: as :func:`command`.
        FederationError: as :func:`command`, or another program listens at a port of the server.
        StorageError: as :func:`command`.
    """
    arguments, environment = command(kit, trackers)
    if party_of(kit.resolve())[0] == "server":
        _check_ports(ports_of(kit.resolve()))
    process = subprocess.Popen(arguments, env=environment, cwd=kit, start_new_session=True)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: _end(process.pid))
    return process.wait()


def _check_ports(ports: Iterable[int]) -> None:
    """Refuse ports that are in use. FLARE's server would start all the same, and no site would reach it."""
    for port in ports:
        with socket.socket() as probe:
            if sys.platform != "win32":  # there, it would let two programs share the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended does not count
            try:
                probe.bind(("", port))
            except OSError as error:
                raise FederationError(
                    f"port {port}: the server cannot listen there ({error.strerror}). Stop the program that uses it, perhaps "
                    "an earlier start of this kit, or choose other ports under [server] in the project file and provision again"
                ) from error


def _end(pid: int) -> None:
    """Kill FLARE's main process and the job that it started. The run's checkpoint is on the disk, so no warning is needed."""
    main = psutil.Process(pid)
    for process in (*main.children(recursive=True), main):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
