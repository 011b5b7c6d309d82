"""Claim: a simulated federation of 100 clients needs no more than 1.05 times the memory of one with a single client.

Each side is a separate process that loads the model and runs one round. Its peak resident memory is measured. Simulated clients
share one frozen model, so each adds only its text and its context vectors. All have the same few sentences: the texts of 100
different clients would include longer ones, and the longest pass would decide the peak. The peak after loading is printed too;
the ratio is meaningful only if a run exceeds it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from _pairs import TASK, Claim, Spread, compare, model_settings, parser, report, sentences, use_threads
from ifedicl.backbone.load import load_backbone
from ifedicl.runs import federate, simulate
from ifedicl.settings import CalibrationSettings, HoldoutSettings, Method, RoundSettings

_METHOD = Method(
    holdout=HoldoutSettings(selection=0.0), calibration=CalibrationSettings(local_steps=1), rounds=RoundSettings(rounds=1)
)
_MIB = 1 << 20
_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


@dataclass(frozen=True)
class Peak:
    """Peak resident memory of one process, in MiB."""

    loaded: float
    finished: float


def main() -> None:
    arguments = _arguments()
    use_threads(arguments)
    if arguments.child:
        print(json.dumps(_federation(arguments)))
        return
    arguments.model = model_settings(arguments).source  # children download nothing
    _child(arguments, clients=1)  # a GGUF file is converted at the first run, which needs additional memory
    loaded: list[float] = []

    def peak_of(clients: int) -> float:
        peak = _child(arguments, clients)
        loaded.append(peak.loaded)
        return peak.finished

    claim = Claim(f"{arguments.clients} clients / 1 client", unit="MiB", at_most=1.05)
    comparison = compare(claim, lambda _: peak_of(arguments.clients), lambda _: peak_of(1), arguments.pairs, warm_up=False)
    report("memory", arguments, [comparison], peak_after_loading_mib=round(Spread.of(loaded).median, 1))


def _arguments() -> argparse.Namespace:
    arguments = parser(__doc__, examples=4)
    arguments.add_argument("--clients", type=int, default=100, help="of the larger federation (default: %(default)s)")
    arguments.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return arguments.parse_args()


def _child(arguments: argparse.Namespace, clients: int) -> Peak:
    """Run a federation in a separate process.

    A child starts with its parent's peak (``ru_maxrss`` survives ``exec``), which is low because the parent loads no model.
    """
    values = {name: getattr(arguments, name) for name in ("model", "dtype", "device", "threads", "examples")}
    options = [item for name, value in values.items() if value is not None for item in (f"--{name}", str(value))]
    command = [sys.executable, str(Path(__file__)), "--child", "--clients", str(clients), *options]
    return Peak(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _federation(arguments: argparse.Namespace) -> dict[str, float]:
    """One round of simulated clients with ``--examples`` sentences each."""
    settings = model_settings(arguments)
    backbone = load_backbone(settings)
    loaded = _peak()
    clients = dict.fromkeys((f"client-{number}" for number in range(arguments.clients)), sentences(arguments.examples))
    federate(simulate(backbone, TASK, clients), settings, TASK, _METHOD)
    return {"loaded": loaded, "finished": _peak()}


def _peak() -> float:
    """Peak resident memory of this process until now, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / _MIB


if __name__ == "__main__":
    main()
