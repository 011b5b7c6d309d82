"""Claims on a simulation of 1,000 clients with a tiny random model: at most 60 ms a client and round, at most 1.05 times the
peak memory of one client's run; and at most 0.5 ms of the coordinator for a client and round.

Each measurement is a process of its own. `run` is `simulate` and `federate` with checkpoint and journal: clients with four
sentences of their own, evaluated each round (a round is an update and an evaluation of every client), in the paper's form and
in the preset `subspace`. `coordinator` asks clients with fixed replies of the size of SmolLM2-135M's, so only the coordinator
is measured: packing, decoding, checks, sums, ledger heads and a checkpoint a round; at three numbers of clients, because the
cost of one client must not grow with them. All runs in one thread. Processor time is what a round takes on an idle machine;
wall time is given too. No download. About three minutes on an idle machine. Finished measurements stay in `--keep` and are not
repeated; the figures go to `docs/results/scale.json`.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _gpu_shapes import TINY, backbone_of
from _pairs import TASK, Spread, sentences
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.bench.provenance import commit, machine
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.vectors import ContextVectors
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.driver import RunOptions
from ifedicl.federation.events import Event, RoundDone, StepStarted, each
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import ContextReply, Envelope, EvaluateReply, JobReply, Reply, UpdateReply, VectorsReply
from ifedicl.federation.run_folder import RunFolder
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Tally
from ifedicl.runs import federate, simulate
from ifedicl.settings import Method, ModelSettings
from ifedicl.settings.presets import changed, load_preset

_RESULTS = Path(__file__).parents[1] / "docs" / "results" / "scale.json"
_KEPT = Path("runs") / "scale"
_PRESETS = ("paper", "subspace")
_TEXTS = 4  # of each client
_ROUNDS = {"run": 3, "coordinator": 10}
_FINGERPRINT = "0" * 64  # the weights are random
_LAYERS, _WIDTH = 30, 576  # of SmolLM2-135M
_MIB = 1 << 20
_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    if arguments.child is not None:
        print(json.dumps(_profiled(partial(_CHILDREN[arguments.child], arguments), arguments.profile)))
        return
    runs = {preset: _run_figures(preset, arguments) for preset in arguments.presets}
    counts = sorted({max(1, arguments.clients // 10), arguments.clients, arguments.clients * 5})
    alone = [_coordinator_figures(clients, arguments) for clients in counts]
    found = {
        "benchmark": "thousand_clients",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        **machine(),
        "clients": arguments.clients,
        "repeats": arguments.repeats,
        "runs": runs,
        "coordinator": alone,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _print(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000, help="simulated clients (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="processes of each measurement (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="the file of the figures (default: %(default)s)")
    parser.add_argument("--presets", nargs="+", choices=_PRESETS, default=list(_PRESETS), help="of the whole simulations")
    parser.add_argument("--keep", type=Path, default=_KEPT, help="folder of finished measurements (default: %(default)s)")
    parser.add_argument("--child", choices=list(_CHILDREN), help="one measurement in this process; prints its JSON")
    parser.add_argument("--preset", choices=_PRESETS, default="paper", help="of --child run (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="with --child: print where the time goes, to standard error")
    return parser.parse_args()


def _run_figures(preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times of a whole simulation, and its peak memory against one client's run."""
    many, one = list[Any](), list[Any]()
    for number in range(arguments.repeats):  # in turn
        one.append(_child(arguments, "run", 1, number, preset))
        many.append(_child(arguments, "run", arguments.clients, number, preset))

    def spread_of(name: str) -> dict[str, float]:
        return _spread([1000 * seconds / arguments.clients for run in many for seconds in run[name]])

    return {
        "processor_milliseconds_a_client_and_round": spread_of("processor_seconds"),
        "milliseconds_a_client_and_round": spread_of("round_seconds"),
        "of_which_outside_the_clients": spread_of("outside_seconds"),
        "milliseconds_a_client_before_the_rounds": _spread([1000 * run["before_seconds"] / arguments.clients for run in many]),
        "peak_mib": _spread([run["peak_mib"] for run in many]),
        "peak_mib_of_one_client": _spread([run["peak_mib"] for run in one]),
        "peak_ratio": _spread([first["peak_mib"] / second["peak_mib"] for first, second in zip(many, one, strict=True)]),
        "checkpoint_bytes_a_client": round(many[0]["checkpoint_bytes"] / arguments.clients),
    }


def _coordinator_figures(clients: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times, memory and checkpoint of the coordinator alone."""
    found = [_child(arguments, "coordinator", clients, number) for number in range(arguments.repeats)]
    size = {name: round(found[0][name]) for name in ("bytes_down", "bytes_up")}
    return {
        "clients": clients,
        "processor_milliseconds_a_client_and_round": _spread(
            [1000 * seconds / clients for run in found for seconds in run["processor_seconds"]]
        ),
        "milliseconds_a_client_and_round": _spread(
            [1000 * seconds / clients for run in found for seconds in run["round_seconds"]]
        ),
        "checkpoint_bytes_a_client_and_round": round(found[0]["checkpoint_bytes"] / clients / _ROUNDS["coordinator"]),
        "peak_mib": _spread([run["peak_mib"] for run in found]),
        **size,
    }


def _child(arguments: argparse.Namespace, part: str, clients: int, number: int, preset: str = "paper") -> Any:
    """A measurement in a process of its own, or the kept one. It starts with this process's peak, which is low."""
    kept = arguments.keep / f"{part}-{preset}-{clients}-{number}.json"
    if not kept.exists():
        command = [sys.executable, __file__, "--child", part, "--clients", str(clients), "--preset", preset]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


@dataclass
class _Watch:
    """Wall and processor seconds of each round, and the wall seconds within it that no client took."""

    round_seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    outside_seconds: list[float] = field(default_factory=list)
    _begun: tuple[float, float] = (0.0, 0.0)
    first: float = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepStarted) and event.step == "update":
            self._begun, self._within = (time.perf_counter(), time.process_time()), 0.0
            self.first = self.first or self._begun[0]
        elif isinstance(event, RoundDone):
            self.round_seconds.append(time.perf_counter() - self._begun[0])
            self.processor_seconds.append(time.process_time() - self._begun[1])
            self.outside_seconds.append(self.round_seconds[-1] - self._within)
        elif not isinstance(event, StepStarted) and self.first:
            self._within += getattr(event, "traffic").seconds  # noqa: B009


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    """A whole simulation."""
    backbone = replace(backbone_of(TINY, torch.device("cpu"), torch.float32), fingerprint=_FINGERPRINT)
    texts = sentences(_TEXTS * arguments.clients)
    examples = {f"client-{number:04d}": texts[number * _TEXTS : (number + 1) * _TEXTS] for number in range(arguments.clients)}
    method = _method(arguments.preset, _ROUNDS["run"])
    watch, start = _Watch(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name))
        clients = simulate(backbone, TASK, examples)
        options = RunOptions(checkpoint=folder.checkpoint, observer=each(folder.journal(TASK, examples), watch))
        federated = federate(clients, ModelSettings(source=TINY, device="cpu"), TASK, method, options=options)
        size = folder.checkpoint.stat().st_size
    assert len(federated.outcome.state.history[-1].clients) >= 0.98 * arguments.clients  # a few have held-out text only
    return {**_figures(watch, size), "before_seconds": watch.first - start}


def _method(preset: str, rounds: int) -> Method:
    """A preset with a few rounds, each of them evaluated."""
    return changed(load_preset(preset), {"rounds": {"rounds": rounds, "evaluate_every": 1}}, "benchmark")


def _alone(arguments: argparse.Namespace) -> dict[str, Any]:
    """A coordinator and clients with fixed replies."""
    method = _method("paper", _ROUNDS["coordinator"]).model_copy(update={"weighting": "examples"})
    watch, canned = _Watch(), [_Canned(f"client-{number:06d}") for number in range(arguments.clients)]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "state.safetensors"
        shape = ModelShape(_FINGERPRINT, _LAYERS, _WIDTH)
        coordinator = Coordinator(LocalEngine(canned), TASK, method, shape, checkpoint_file=file, observer=watch)
        outcome = coordinator.run()
        size = file.stat().st_size
    assert len(outcome.state.history[-1].by_client) == arguments.clients
    in_rounds = [item for item in outcome.state.traffic if item.step in ("update", "evaluate") and item.round > 0]
    count = len(in_rounds) / 2
    sent = {name: sum(getattr(item, name) for item in in_rounds) / count for name in ("bytes_down", "bytes_up")}
    return {**_figures(watch, size), **sent}


class _Canned:
    """A client with fixed replies and a ledger's head that moves on."""

    _frames: Mapping[str, Envelope] = {
        kind: Envelope.of(reply)
        for kind, reply in dict[str, Reply](
            job=JobReply(),
            vectors=VectorsReply(
                ContextVectors(np.ones((1, _LAYERS, 2, _WIDTH), dtype=np.float32), np.array([8])),
                cursor=f"8:{'0' * 32}",
                replaces=True,
                dtype="float32",
                wire_dtype="float32",
            ),
            context=ContextReply(),
            update=UpdateReply(Coefficients(np.ones((_LAYERS, 2, 2), dtype=np.float32)), 8, 0.5),
            evaluate=EvaluateReply((Tally(4, 3, 2.0),)),
        ).items()
    }

    def __init__(self, name: str) -> None:
        self.name = name
        self._lines = 1

    def handle(self, envelope: Envelope, /) -> Envelope:
        self._lines += 1
        return Envelope(Head(self._lines, "0" * 64), self._frames[envelope.frame.request.kind].frame)


def _figures(watch: _Watch, checkpoint: int) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / _MIB
    times = {name: getattr(watch, name) for name in ("round_seconds", "processor_seconds", "outside_seconds")}
    return {**times, "checkpoint_bytes": checkpoint, "peak_mib": round(peak, 1)}


_CHILDREN: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"run": _run, "coordinator": _alone}


def _profiled(work: Callable[[], dict[str, Any]], is_wanted: bool) -> dict[str, Any]:
    if not is_wanted:
        return work()
    profile = cProfile.Profile()
    found = profile.runcall(work)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(45)
    return found


def _spread(values: list[float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(Spread.of(values)).items()}


def _print(found: Mapping[str, Any]) -> None:
    print(f"{found['clients']} clients, {found['processor']}: median (minimum to maximum)")
    for preset, figures in found["runs"].items():
        print(f"  {preset}:")
        for name, value in figures.items():
            print(f"    {name.replace('_', ' ')}: {_words(value)}")
    for figures in found["coordinator"]:
        print(f"  coordinator of {figures['clients']} clients:")
        for name, value in figures.items():
            print(f"    {name.replace('_', ' ')}: {_words(value)}")


def _words(value: Any) -> str:
    return f"{value['median']:g} ({value['minimum']:g} to {value['maximum']:g})" if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
