"""The demo over FLARE: one server and four sites as separate processes, with mutual TLS on loopback.

At the end the local engine runs the same federation with the same seed, and the results are compared.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from ifedicl import files, runs, seeds
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import load_backbone
from ifedicl.backbone.source import shape_of
from ifedicl.demo.fetch import Place, demo_model, demo_places
from ifedicl.demo.story import POOL, TASK, TEST
from ifedicl.errors import FederationError
from ifedicl.federation import checkpoint
from ifedicl.federation.run_folder import RunFolder
from ifedicl.flare.jobs import JobSettings, write_job
from ifedicl.flare.names import CLIENT_FILE, RUNS
from ifedicl.flare.participants import Project, ServerAddress
from ifedicl.owner.own_files import split_key_of
from ifedicl.owner.policy import LedgerSettings, load_client_settings
from ifedicl.settings import ModelSettings, load_preset

_RUN = "demo"
_COORDINATOR = "coordinator@example.org"
LARGEST_SUM, LARGEST_LOG = 1e-4, 1e-2
"""Allowed differences between two engines: relative for sums, in nats for label log-probabilities."""
_PATIENCE = 120.0  # seconds for all sites to connect


@dataclass(frozen=True)
class Comparison:
    """FLARE against the local engine, with the same seed and data.

    Attributes:
        seconds: from provisioning to the adapter.
        largest_sum: largest relative difference of a client's context sums.
        largest_log: largest difference of a label's log-probability on the test text, in nats.
    """

    seconds: float
    largest_sum: float
    largest_log: float

    @property
    def is_equal(self) -> bool:
        """Whether the differences are within rounding."""
        return self.largest_sum <= LARGEST_SUM and self.largest_log <= LARGEST_LOG


def play(folder: Path, console: Console, *, seed: int = 0) -> Comparison:
    """Provision, start, run and compare. ``folder`` must be new; kits, logs and the adapter are written there.

    Raises:
        DownloadError: model or text cannot be downloaded.
        FederationError: the job fails.
    """
    from ifedicl.flare.kits import provision

    places = {name.replace(" ", "-"): place for name, place in demo_places(pool=POOL, test=TEST, seed=seed).items()}
    model = ModelSettings(source=str(demo_model()), device="cpu")
    shape = shape_of(model)  # the first run converts the model
    job = JobSettings(
        name=_RUN,
        sites=tuple(places),
        task=TASK,
        method=load_preset("demo").model_copy(update={"seed": seed}),
        model=model,
        fingerprint=shape.fingerprint,
        layers=shape.layers,
        width=shape.width,
    )
    start = time.perf_counter()
    console.print("start-up kits: one server, four sites, one console; the certificate authority is for this demo only")
    project = Project(name="demo", server=_address(), sites=tuple(places), coordinator=_COORDINATOR)
    kits = provision(project, folder / "kits")
    for name, place in places.items():
        _write_site(kits[name], place, job)
    write_job(job, folder / "job")
    with _started(kits, folder):
        _run(kits["console"], folder / "job", tuple(places), console)
    seconds = time.perf_counter() - start
    run = RunFolder(kits["server"] / RUNS / _RUN)
    console.print(f"the adapter is ready after {seconds:.0f} seconds: {run.adapter}", highlight=False)
    console.print("the local engine runs the same federation with the same seed", highlight=False)
    return _compared(run, job, places, kits, seconds)


def _address() -> ServerAddress:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        port, admin_port = (item.getsockname()[1] for item in sockets)
    return ServerAddress(host="localhost", port=port, admin_port=admin_port)


def _write_site(kit: Path, place: Place, job: JobSettings) -> None:
    """The files of a data owner: its sentences, its policy, and its secret: from the seed, so that the demo is repeatable."""
    rows = "".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in place.pool)
    files.write_text(kit / "sentences.jsonl", rows)
    secret = seeds.generator(job.method.seed, "secret", kit.name).bytes(32)
    files.write_bytes(kit / LedgerSettings().secret, secret, private=True)
    files.write_text(
        kit / CLIENT_FILE,
        f"""[data]
file = "sentences.jsonl"

[model]
source = {json.dumps(job.model.source)}
device = "cpu"

[allow]
tasks = ["{job.task.digest}"]
models = ["{job.fingerprint}"]
class_counts = true
readout_sums = true
""",
    )


@contextmanager
def _started(kits: Mapping[str, Path], folder: Path) -> Iterator[None]:
    """Start all parties but the console, with one thread each; each one's output goes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with ExitStack() as stack:
        for name in [name for name in kits if name != "console"]:
            out = stack.enter_context((folder / f"{name}.out").open("wb"))
            command = [sys.executable, "-m", "ifedicl.cli", "flare", "start", str(kits[name])]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield


def _run(kit: Path, job: Path, sites: Sequence[str], console: Console) -> None:
    from ifedicl.flare.console import connected

    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        try:
            with connected(kit) as opened:
                if set(sites) <= set(opened.sites()):
                    break
        except FederationError:
            pass  # the server is still starting
        time.sleep(1.0)
    else:
        raise FederationError(
            f"sites: not all of {', '.join(sites)} connected within {_PATIENCE:.0f} seconds. See the .out files."
        )
    console.print("all four sites are connected; the job is signed and sent")
    with connected(kit) as opened:
        opened.submit(job)
        for facts in opened.rounds(opened.job()):
            console.print(f"  round {facts['round']} of {facts['rounds']}", highlight=False)


def _compared(
    run: RunFolder, job: JobSettings, places: Mapping[str, Place], kits: Mapping[str, Path], seconds: float
) -> Comparison:
    torch.set_num_threads(1)  # as at every site
    backbone = load_backbone(job.model)
    pools = {name: place.pool for name, place in places.items()}
    # Each owner's key divides its examples, whatever seed the coordinator names.
    keys = {name: split_key_of(load_client_settings(kits[name] / CLIENT_FILE).ledger) for name in places}
    clients = runs.simulate(backbone, job.task, pools, seed=job.method.seed, split_keys=keys)
    local = runs.federate(clients, job.model, job.task, job.method)
    remote = checkpoint.load(run.checkpoint)
    assert remote is not None
    sums = [
        float(np.max(np.abs(vectors.sums - remote.client_vectors[name].sums) / np.maximum(np.abs(vectors.sums), 1e-6)))
        for name, vectors in local.outcome.state.client_vectors.items()
    ]
    texts = [row.text for place in places.values() for row in place.test]
    # The best round is compared, without the gate: two adapters with a closed gate are always equal.
    pairs = ((Adapter.load(run.adapter), remote), (local.adapter, local.outcome.state))
    adapters = [replace(adapter, coefficients=state.best, readout=state.readout) for adapter, state in pairs]
    logs = [
        np.log([list(item.probabilities.values()) for item in adapter.classifier(backbone).classify(texts)])
        for adapter in adapters
    ]
    return Comparison(seconds, max(sums), float(np.max(np.abs(logs[0] - logs[1]))))
