"""Claims on the engine. With a trivial payload and 3 sites, a round over FLARE takes at most 0.3 s, and the first one ends at
most 15 s after the submission. With 50 simulated clients the coordinator takes at most 5 ms for each client and round.

The first part starts a server and three sites as processes on loopback, with a random model of three layers, so that a site's
work takes a few milliseconds. The second part uses clients with fixed replies in this process, so that only the coordinator is
measured: encoding and decoding, checks, aggregation, and a checkpoint after each step. Its memory is the peak of Python and
numpy, at several numbers of clients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' federation of processes, and their model

from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.processes import Federation, output_of, owner_file, wait_for

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.bench.provenance import machine
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.vectors import ContextVectors
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.messages import ContextReply, ContextRequest, Reply, Request, UpdateReply, VectorsReply, VectorsRequest

_LAYERS, _WIDTH = 30, 576  # of SmolLM2-135M
_SITES = ("a", "b", "c")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the job over FLARE")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 200], help="numbers of simulated clients")
    parser.add_argument("--part", choices=["flare", "coordinator"], help="one part alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, object] = {"machine": machine()}
    if arguments.part != "coordinator":
        found["flare"] = over_flare(arguments.rounds)
    if arguments.part != "flare":
        found["coordinator"] = [alone(count) for count in arguments.clients]
    print(json.dumps(found, indent=None if arguments.json else 2))


def over_flare(rounds: int) -> dict[str, float]:
    """Seconds from the submission to the first round, seconds of a round, and bytes of an exchange."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny.save_model(folder / "model")
        config = _config(folder, model, rounds)
        with Federation(folder, _SITES) as federation:
            for site in _SITES:
                federation.client_file(site, owner_file(folder / f"{site}.jsonl", model))
            federation.start("server", *_SITES)
            federation.connected(*_SITES)
            output_of("flare", "job", config, "--out", folder / "job")
            start = time.monotonic()
            output_of("flare", "submit", folder / "job", "--console", federation.console)
            submitted = time.monotonic() - start
            wait_for("round 1", lambda: (state := federation.state("config")) and state.round > 0, 120)
            first = time.monotonic() - start
            wait_for("the end", lambda: (federation.run_folder("config") / "adapter" / "adapter.json").is_file(), 300)
            state = federation.state("config")
            assert state is not None
    steps = [item for item in state.traffic if item.step == "update" and item.round > 0]
    each = [max(item.seconds for item in steps if item.round == number) for number in range(1, rounds)]
    payload = sum(item.bytes_down + item.bytes_up for item in steps) / len(steps)
    carrier = sum(item.carrier_bytes for item in steps) / len(steps)
    return {
        "seconds_from_start_of_submit_to_first_round": round(first, 2),
        "of_which_the_submit_command": round(submitted, 2),
        "seconds_a_round_median": round(statistics.median(each), 3),
        "seconds_a_round_longest": round(max(each), 3),
        "bytes_an_exchange_ours": round(payload),
        "bytes_an_exchange_flare_adds_to_it": round(carrier),
    }


def alone(clients: int) -> dict[str, float]:
    """Milliseconds of the coordinator for each client and round, and its peak memory in MiB, when it keeps sums."""
    rounds = 10
    settings = {"rounds": rounds}
    method = tiny.method(holdout={"selection": 0.0}, weighting="examples", rounds=settings)
    canned = [_Canned(f"client-{number:03d}") for number in range(clients)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        coordinator = Coordinator(
            engine_of(canned), tiny.TASK, method, ModelShape("0" * 64, _LAYERS, _WIDTH), checkpoint_file=file
        )
        start = time.perf_counter()
        coordinator.run()
        seconds = time.perf_counter() - start
        size = file.stat().st_size
        tracemalloc.start()
        Coordinator(engine_of(canned), tiny.TASK, method, ModelShape("0" * 64, _LAYERS, _WIDTH)).run()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return {
        "clients": clients,
        "milliseconds_a_client_and_round": round(1000 * seconds / clients / rounds, 3),
        "peak_mib": round(peak / 2**20, 2),
        "checkpoint_mib": round(size / 2**20, 2),
    }


class _Canned:
    """A client with fixed replies."""

    _vectors = VectorsReply(
        vectors=ContextVectors(np.ones((1, _LAYERS, 2, _WIDTH), dtype=np.float32), np.array([8])),
        cursor="8:00",
        replaces=True,
        dtype="float32",
        wire_dtype="float32",
    )
    _update = UpdateReply(Coefficients(np.ones((_LAYERS, 2, 2), dtype=np.float32)), 8, 0.5)

    def __init__(self, name: str) -> None:
        self.name = name

    def handle(self, request: Request) -> Reply:
        if isinstance(request, VectorsRequest):
            return self._vectors
        return ContextReply() if isinstance(request, ContextRequest) else self._update


def _config(folder: Path, model: Path, rounds: int) -> Path:
    for number, site in enumerate(_SITES):
        tiny.write_rows(folder / f"{site}.jsonl", tiny.rows(12, seed=number))
    sections = f"""
        [holdout]
        selection = 0.0
        [calibration]
        batch_size = 8
        local_steps = 1
        [rounds]
        rounds = {rounds}
        """
    return tiny.write_config(folder / "config.toml", model, _SITES, sections)


if __name__ == "__main__":
    main()
