"""The loop of the task cache with a real model: miss, exact hit, near task.

One data set is calibrated and stored, then requested again in this process and in a new one. A related one is requested last.
Prints the cache's answer and the seconds of each request. Test rows are never read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _sets import load_labelled
from ifedicl import files
from ifedicl.bench.plan import SetSettings, load_plan
from ifedicl.demo.fetch import demo_model
from ifedicl.runs import Cache, run
from ifedicl.settings import RunSettings, load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--sets", nargs=2, default=["sst2", "sst5"], help="a data set, and a related one")
    parser.add_argument("--pool", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        cache = Cache(str(base / "tasks.sqlite"), "benchmark")
        first, second = (written(base, arguments.data, name, arguments.pool, arguments.rounds) for name in arguments.sets)
        timed_run("first request", load_settings(first), base / "one", cache)
        for number in range(5):
            timed_run("the same again, in process", load_settings(first), base / f"again-{number}", cache)
        command = [sys.executable, "-m", "ifedicl.cli", "run", str(first), "--store", cache.url, "--federation", "benchmark"]
        start = time.perf_counter()
        subprocess.run([*command, "--out", str(base / "other")], check=True, capture_output=True)
        print(json.dumps({"step": "the same again, as a command", "seconds": round(time.perf_counter() - start, 3)}))
        timed_run("another task", load_settings(second), base / "two", cache)


def written(base: Path, data: Path, name: str, pool: int, rounds: int) -> Path:
    """A config of four simulated clients."""
    known = load_plan("dev", data).sets.get(name, SetSettings(source=str(data / name)))
    task = load_labelled(name, known).task
    config = base / f"{name}.toml"
    lines = [
        f"[task]\nname = {json.dumps(name)}\nlabels = {json.dumps(list(task.labels))}",
        f"label_words = {json.dumps(list(task.label_words))}\ntemplate = {json.dumps(task.template)}",
        f'[model]\nsource = {json.dumps(str(demo_model()))}\ndtype = "float32"\ndevice = "cpu"',
        f"[data]\ntrain = {json.dumps(str((data / name / 'train.jsonl').resolve()))}",
        f"[data.split]\nclients = 4\npool = {pool}",
        f"[rounds]\nrounds = {rounds}\n[calibration]\nlocal_steps = 2",
    ]
    files.write_text(config, "\n".join(lines) + "\n")
    return config


def timed_run(step: str, settings: RunSettings, folder: Path, cache: Cache) -> None:
    start = time.perf_counter()
    result = run(settings, folder, cache=cache)
    seconds = time.perf_counter() - start
    assert result.answer is not None
    found = result.answer.found
    print(json.dumps({"step": step, "found": found.kind, "why": found.why, "seconds": round(seconds, 4)}), flush=True)


if __name__ == "__main__":
    main()
