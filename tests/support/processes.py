"""A server and sites as separate processes on loopback, for tests and benchmarks: every step through the command line.

The coordinator's commands run within the caller's process: each would import FLARE, and some of them torch, for seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from ifedicl.federation.checkpoint import load
from ifedicl.federation.state import State
from ifedicl.flare import processes
from tests.support.command_line import run

COORDINATOR = "coordinator@example.org"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What ``condition`` gives once it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:.0f} seconds")


def output_of(*arguments: str | Path) -> str:
    """What a command that succeeds prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # FLARE leaves closing its files to the garbage collector
        code = run(*arguments)
    assert code == 0, out.getvalue()
    return out.getvalue()


def owner_file(data: Path, model: Path) -> str:
    """A ``client.toml`` that lets a tiny model's figures out."""
    return f"""
    [data]
    file = {json.dumps(str(data))}
    [model]
    source = {json.dumps(str(model))}
    device = "cpu"
    dtype = "float32"
    [allow]
    tasks = ["any"]
    models = ["any"]
    class_counts = true
    [least]
    examples = 1
    group = 1
    held_out = 1
    """


def _environment() -> dict[str, str]:
    short = {
        "NVFLARE_GET_TASK_TIMEOUT": "3",
        "NVFLARE_SUBMIT_TASK_RESULT_TIMEOUT": "5",
        "NVFLARE_DEAD_CLIENT_GRACE_PERIOD": "5",
    }
    return {**os.environ, **short, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Federation:
    """Processes of one federation, ended when the block ends."""

    def __init__(self, folder: Path, sites: Sequence[str], *, relayed: bool = False) -> None:
        self.folder = folder
        self.sites = tuple(sites)
        port, admin, relay = free_ports(3)
        self.relay = Relay(relay, port) if relayed else None
        # The same authority twice: sites' kits name the relay's port, the server's its own.
        self.kits = self.provision("kits", sites, port, admin)
        if relayed:
            self.kits |= {name: kit for name, kit in self.provision("kits", sites, relay, admin).items() if name in sites}
        self.ports = (relay if relayed else port, admin)
        self.server_options: Sequence[str | Path] = ()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._server_began = 0  # length of its output before the last start

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *_exception: object) -> None:
        for name in list(self._processes):
            self.kill(name)
        if self.relay is not None:
            self.relay.close()

    @property
    def console(self) -> Path:
        """The console's kit."""
        return self.kits["console"]

    def run_folder(self, run: str) -> Path:
        """A run's folder at the server."""
        return self.kits["server"] / "runs" / run

    def state(self, run: str) -> State | None:
        """The coordinator's state at its last checkpoint."""
        return load(self.run_folder(run) / "checkpoint" / "state.safetensors")

    def client_file(self, site: str, text: str) -> None:
        """Write a site's ``client.toml``."""
        (self.kits[site] / "client.toml").write_text(text)

    def start(self, *names: str) -> None:
        """Start parties; who was started before is started again."""
        for name in names:
            if name == "server" and (self.folder / "server.out").exists():
                self._server_began = len(self.printed("server"))
            with (self.folder / f"{name}.out").open("ab") as out:
                command = [sys.executable, "-m", "ifedicl.cli", "flare", "start", str(self.kits[name])]
                command += map(str, self.server_options if name == "server" else ())
                self._processes[name] = subprocess.Popen(command, stdout=out, stderr=out, env=_environment())

    def start_as(self, name: str, kit: Path, uid: str) -> None:
        """Start FLARE itself on a kit, with a name that need not be the kit's: what an attacker would do."""
        command, environment = processes.command(kit)
        command = [uid if item.startswith("uid=") else item for item in command]
        with (self.folder / f"{name}.out").open("ab") as out:
            self._processes[name] = subprocess.Popen(command, cwd=kit, stdout=out, stderr=out, env=environment)

    def printed(self, name: str) -> str:
        """The output of a party, with FLARE's log."""
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """As a power cut would: every process of the party at once."""
        process = self._processes.pop(name)
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        process.wait()

    def connected(self, *names: str, seconds: float = 60.0) -> None:
        """Wait until the server, since its last start, has reported these sites."""

        def look() -> bool:
            printed = self.printed("server")[self._server_began :]
            return all(f"New client {name}@" in printed or f"Re-activate the client: {name} " in printed for name in names)

        wait_for(f"{names} connected", look, seconds)

    def status(self) -> Mapping[str, Any]:
        """What the console sees."""
        return dict(json.loads(output_of("flare", "status", "--console", self.console, "--json")))

    def written_by_server(self) -> dict[Path, bytes]:
        """Every file in the server's kit, and its output."""
        files = [path for path in self.kits["server"].rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in [*files, self.folder / "server.out"]}

    def provision(self, out: str, sites: Sequence[str], port: int, admin: int) -> dict[str, Path]:
        """Kits of the authority in the folder ``out``."""
        project = self.folder / "project.toml"
        project.write_text(
            f"""
            name = "test"
            coordinator = "{COORDINATOR}"
            sites = {json.dumps(list(sites))}
            [server]
            host = "localhost"
            port = {port}
            admin_port = {admin}
            """
        )
        made = json.loads(output_of("flare", "provision", project, "--out", self.folder / out, "--json"))
        return {name: Path(kit) for name, kit in made.items()}


class Relay:
    """A network between sites and server that can be cut."""

    def __init__(self, port: int, target: int) -> None:
        self._target = target
        self._cut = False
        self._pairs: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Every connection ends, and new ones end at once."""
        self._cut = True
        for item in self._pairs:
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()
        self._pairs.clear()

    def mend(self) -> None:
        """New connections go through again."""
        self._cut = False

    def close(self) -> None:
        """Cut all connections and stop listening."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self._pairs += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=ends, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for item in (source, sink):
        with contextlib.suppress(OSError):
            item.shutdown(socket.SHUT_RDWR)
