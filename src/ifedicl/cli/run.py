"""``ifedicl run``."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ifedicl.cli.options import Json, MLflow, Telemetry, TensorBoard

if TYPE_CHECKING:
    from ifedicl.federation.run_folder import RunFolder
    from ifedicl.report import Report
    from ifedicl.runs import RunResult
    from ifedicl.store.requests import Answer


def run(
    config: Annotated[Path, typer.Argument(help="A TOML file; `ifedicl init` writes one.")],
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/NAME of the config.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    more_rounds: Annotated[
        int, typer.Option(min=0, help="After a finished run: include added examples, and calibrate this many more rounds.")
    ] = 0,
    store: Annotated[
        str | None,
        typer.Option(
            envvar="IFEDICL_STORE",
            show_envvar=True,
            help="A task cache (a file or postgresql://USER@HOST/DATABASE): use its adapters, and store new ones.",
        ),
    ] = None,
    federation: Annotated[str, typer.Option(help="With --store: use adapters of this federation only.")] = "default",
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="With --store: do not reuse a stored adapter.")] = False,
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    telemetry: Telemetry = False,
    track_clients: Annotated[
        bool, typer.Option("--track-clients", help="TensorBoard and MLflow also get each client's figures; open mode only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a federation of the clients in CONFIG on this machine, and save its adapter.

    A checkpoint is written after each round. After a crash, --resume continues the run and ends with the same adapter.
    """
    from ifedicl import runs
    from ifedicl.backbone.source import check_source
    from ifedicl.federation.run_folder import RunFolder
    from ifedicl.settings import load_settings
    from ifedicl.tracking.choice import Trackers

    start = time.perf_counter()
    settings = load_settings(config)
    folder = out or Path("runs") / config.stem
    paths = RunFolder(folder)
    paths.check(resume=resume, more_rounds=more_rounds)
    trackers = Trackers(tensorboard, mlflow, telemetry, track_clients)
    trackers.check()
    check_source(settings.model)
    data = runs.RunData.read(settings) if store is None else None  # the cache may have the adapter

    # From here on torch and transformers are imported.
    from ifedicl.federation.events import Begun, each
    from ifedicl.progress import federation_bars
    from ifedicl.report import print_report, write_report

    keeper = paths.settings_keeper("config.toml", config.read_text(encoding="utf-8"))
    cache = None if store is None else runs.Cache(store, federation, recalibrate or resume or more_rounds > 0)
    with (
        federation_bars(settings.task.name, settings.rounds.rounds) as observer,
        trackers.observer(folder.resolve().name, settings.method) as tracked,
    ):
        observed = each(keeper, observer, tracked)
        result = runs.run(settings, folder, resume=resume, more_rounds=more_rounds, observer=observed, cache=cache, data=data)
    if result.answer is not None and not as_json:
        print(f"task cache: {result.answer.found.kind}: {result.answer.found.why}")
    if result.federated is None:  # the answer was stored, and no federation ran
        assert result.answer is not None
        keeper(Begun(None))
        if as_json:
            print(json.dumps({"adapter": str(paths.adapter), "cache": _cache_facts(result.answer)}))
        else:
            print(f"adapter: {paths.adapter}   {time.perf_counter() - start:.1f} seconds")
        return
    seconds = time.perf_counter() - start
    report = report_of(settings.task.name, result, seconds)
    write_report(report, paths.report)
    if as_json:
        cache_facts = {} if result.answer is None else {"cache": _cache_facts(result.answer)}
        print(json.dumps(_run_facts(report, paths) | cache_facts))
        return
    print_report(report, Console(markup=False))
    print(f"adapter: {paths.adapter}   report: {paths.report}   {seconds:.0f} seconds")


def report_of(title: str, result: RunResult, seconds: float) -> Report:
    """The report of a federation that ran."""
    from ifedicl.report import Figures, Report, compare

    assert result.federated is not None
    rows = [
        Figures(name, evaluation, {}, took)
        for name, evaluation, took in (("zero-shot", result.zero_shot, 0.0), ("the federation", result.test, seconds))
        if evaluation is not None
    ]
    verdicts = []
    if result.test is not None and result.zero_shot is not None:
        verdicts.append(compare("The federation", result.test, "zero-shot", result.zero_shot.hits))
    return Report(
        title=f"ifedicl: {title}",
        adapter=result.federated.adapter,
        outcome=result.federated.outcome,
        clients=result.clients,
        rows=rows,
        verdicts=verdicts,
        samples=(),
        seconds=seconds,
    )


def _run_facts(report: Report, paths: RunFolder) -> dict[str, Any]:
    state = report.outcome.state
    return {
        "adapter": str(paths.adapter),
        "report": str(paths.report),
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


def _cache_facts(answer: Answer) -> dict[str, Any]:
    return {"kind": answer.found.kind, "why": answer.found.why, "id": answer.entry.id, "version": answer.entry.version}
