"""Claims: a wrong path is answered in ≤ 0.7 s; `classify` and `serve` start in ≤ 1.5 times ``import torch, transformers``.

All times are processor seconds, which a busy machine changes little. Each side is a fresh process; the sides run in turn. The
model is the tests' tiny one: what is measured is imports. `serve` counts until its first answer. Ratios are of one turn. The
second reference imports the model's class too: with it transformers imports much that no labelling uses (torch's compiler and
distributed tensors, scipy.optimize, accelerate) and that we cannot leave out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import psutil

OLD = Path(__file__).parents[1] / "tests" / "fixtures" / "old"
_COMMAND = [sys.executable, "-m", "ifedicl.cli"]
_ADAPTER, _MODEL = str(OLD / "format-2"), str(OLD / "model")
_WRONG = {
    "run: no config": ["run", "nowhere.toml"],
    "run: no data file": ["run", "config.toml"],
    "inspect: no path": ["inspect", "nowhere"],
    "classify: no adapter": ["classify", "nowhere", "text"],
    "evaluate: no column": ["evaluate", _ADAPTER, "rows.csv", "--model", _MODEL],
    "serve: no adapter": ["serve", "nowhere"],
    "policy check: no file": ["policy", "check", "nowhere.toml"],
    "flare start: no kit": ["flare", "start", "nowhere"],
    "tasks list: no cache": ["tasks", "list", "--store", "nowhere.sqlite"],
}
_RATIOS = (("classify", "imports", 1.5), ("serve", "imports", 1.5), ("classify", "imports and class", None))
_IMPORTS = "import torch, transformers"
_CLASS = f"{_IMPORTS}; from transformers import AutoTokenizer; from transformers.models.llama import modeling_llama"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="measured turns; the first, unmeasured one fills the caches")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.csv").write_text("a,b\n1,2\n")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": str(folder / "pyc"), "TOKENIZERS_PARALLELISM": "false"}

        def spent(command: list[str], *, is_refused: bool = False) -> float:
            """Processor seconds of a command."""
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=not is_refused)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert not is_refused or 2 <= done.returncode <= 9, done.stderr
            return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

        spent([*_COMMAND, "init"])
        sides: dict[str, Callable[[], float]] = {
            "imports": lambda: spent([sys.executable, "-c", _IMPORTS]),
            "imports and class": lambda: spent([sys.executable, "-c", _CLASS]),
            "classify": lambda: spent([*_COMMAND, "classify", _ADAPTER, "good", "--model", _MODEL]),
            "serve": lambda: served(folder, environment),
            **{name: partial(spent, [*_COMMAND, *words], is_refused=True) for name, words in _WRONG.items()},
        }
        turns = [{name: side() for name, side in sides.items()} for _ in range(arguments.turns + 1)][1:]
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in sides}
    for name, value in seconds.items():
        print(f"{value:6.2f} s  {name}")
    slowest = max(_WRONG, key=lambda name: seconds[name])
    print(f"slowest wrong path: {slowest}, {seconds[slowest]:.2f} s; claimed ≤ 0.7 s")
    for side, reference, most in _RATIOS:
        ratios = sorted(turn[side] / turn[reference] for turn in turns)
        median = statistics.median(ratios)
        claim = "for information" if most is None else f"claimed ≤ {most:g}: {'holds' if median <= most else 'does not hold'}"
        print(f"{side} / {reference}: {median:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); {claim}")


def served(folder: Path, environment: Mapping[str, str]) -> float:
    """Processor seconds of `serve` until it has answered its first request."""
    command = [*_COMMAND, "serve", f"old={_ADAPTER}", "--model", _MODEL, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if line.startswith("serving "))
            body = json.dumps({"texts": ["good"]}).encode()
            url = line.split()[-1].rstrip("/") + "/v1/classify"
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  # our own server
            with urllib.request.urlopen(request) as reply:  # noqa: S310
                assert reply.status == 200
            times = psutil.Process(process.pid).cpu_times()
            return float(times.user + times.system)
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
