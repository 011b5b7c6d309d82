"""Runs a plan cell by cell; a finished cell never runs again."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import torch

from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.bench import provenance
from ifedicl.bench.cells import CurvePoint, Record, load_records, save_records
from ifedicl.bench.costs import PeakMemory
from ifedicl.bench.datasets import DataSet, load_set
from ifedicl.bench.plan import Cell, Plan
from ifedicl.bench.plan_file import DEMO
from ifedicl.bench.setup import Setup, ignore_progress
from ifedicl.data import dirichlet_split, draw_pool
from ifedicl.demo.fetch import demo_model
from ifedicl.errors import ConfigError, Fault
from ifedicl.kinds.examples import AnyEvaluation
from ifedicl.settings import ModelSettings

RESULTS = Path("results.jsonl")
_EVEN = 100.0
_TEST_SEED = 0  # all cells have the same test rows, so that methods can be compared row by row


@dataclass(frozen=True)
class Standing:
    """Progress of a plan: records of finished cells in the plan's order, and cells still to run in the order of execution."""

    finished: tuple[Record, ...]
    left: tuple[Cell, ...]

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the mean time of finished cells by method; None before a cell is finished."""
        if not self.finished:
            return None
        seconds: defaultdict[str, list[float]] = defaultdict(list)
        for record in self.finished:
            seconds[record.cell.method].append(record.wall_seconds)
        means = {method: sum(times) / len(times) for method, times in seconds.items()}
        usual = sum(means.values()) / len(means)
        return sum(means.get(cell.method, usual) for cell in self.left)


class Watcher:
    """Receives the events of a run; this one ignores them."""

    def started(self, cell: Cell, standing: Standing) -> None:
        """A cell starts."""

    def progressed(self, done: int, total: int) -> None:
        """``done`` of ``total`` rounds of the current cell are complete."""

    def finished(self, record: Record) -> None:
        """A cell is finished and saved."""


def standing(plan: Plan, folder: Path) -> Standing:
    """Progress of a plan in ``folder``.

    Raises:
        StorageError: the results cannot be read.
        DataError: a data set with finished cells cannot be read.
    """
    return _standing(plan, load_records(folder / RESULTS), _data_sets(plan))


def run_plan(plan: Plan, folder: Path, watcher: Watcher | None = None) -> list[Record]:
    """Run the cells of a plan that are not finished, and return the records of all cells in the plan's order.

    Args:
        plan: methods, sets, seeds and models.
        folder: contains ``results.jsonl``; cells finished there with the same settings and rows do not run again.
        watcher: receives events.

    Raises:
        IfediclError: a cell fails. Finished cells are saved.
    """
    watcher = watcher or Watcher()
    records, data_sets = load_records(folder / RESULTS), _data_sets(plan)
    load = lru_cache(maxsize=1)(lambda name: _load_model(plan.models[name].settings))
    while (progress := _standing(plan, records, data_sets)).left:
        cell = progress.left[0]
        backbone, model = load(cell.model)
        _check_model(cell.model, backbone, progress.finished, folder)
        watcher.started(cell, progress)
        unsplit = {"seed": cell.seed, "alpha": cell.alpha}
        choices = next((done.choices for done in progress.finished if done.cell.model_copy(update=unsplit) == cell), {})
        data = data_sets(cell.set)
        setup = make_setup(plan, cell, data, backbone, model, choices=choices, on_progress=watcher.progressed)
        record = _run_cell(plan, cell, data, setup)
        # Another run may have finished cells in this folder meanwhile. An older record of the same cell has other settings or
        # rows.
        records = [other for other in load_records(folder / RESULTS) if other.cell != cell] + [record]
        save_records(records, folder / RESULTS)
        watcher.finished(record)
    return list(progress.finished)


def make_setup(
    plan: Plan,
    cell: Cell,
    data: DataSet,
    backbone: Backbone,
    model: ModelSettings,
    *,
    choices: Mapping[str, float] | None = None,
    on_progress: Callable[[int, int], None] = ignore_progress,
) -> Setup:
    """The input of a cell's method: pool, split and test rows are drawn, the rest is as in the plan.

    A method that no seed changes gets seed 0; a method that no split changes gets an even split.
    """
    seed = cell.seed or 0
    pool = draw_pool(data.train, plan.pool_of(cell.set), seed)
    parts = dirichlet_split(pool, clients=plan.clients, alpha=cell.alpha or _EVEN, seed=seed)
    return Setup(
        backbone=backbone,
        model=model,
        task=data.task,
        examples={f"client-{number:02d}": part for number, part in enumerate(parts, start=1)},
        test=draw_pool(data.test, plan.test_rows, _TEST_SEED),
        method=plan.method(cell.method, seed),
        choices=choices or {},
        on_progress=on_progress,
    )


def _data_sets(plan: Plan) -> Callable[[str], DataSet]:
    """Reads a data set of the plan by its name, each one once."""
    return lru_cache(maxsize=None)(lambda name: load_set(name, plan.sets[name]))


def _load_model(settings: ModelSettings) -> tuple[Backbone, ModelSettings]:
    if settings.source == DEMO:
        settings = settings.model_copy(update={"source": str(demo_model())})
    backbone = load_backbone(settings)
    # The first use reads the weights from disk; the memory of a cell must not include them.
    backbone.hidden_states(torch.zeros((1, 1), dtype=torch.int64, device=backbone.device))
    return backbone, settings


def _standing(plan: Plan, records: Sequence[Record], data_sets: Callable[[str], DataSet]) -> Standing:
    by_cell = {record.cell: record for record in records}
    finished: list[Record] = []
    left: list[Cell] = []
    for cell in plan.cells():
        record = by_cell.get(cell)
        if record is not None and record.decides == plan.decides(cell) and record.data == data_sets(cell.set).digest:
            finished.append(record)
        else:
            left.append(cell)
    return Standing(tuple(finished), tuple(left))


def _check_model(name: str, backbone: Backbone, finished: Sequence[Record], folder: Path) -> None:
    """Refuse a model that has changed under the same name: its figures do not belong in the same table."""
    if any(record.fingerprint != backbone.fingerprint for record in finished if record.cell.model == name):
        fault = Fault(
            f"models.{name}",
            f"{backbone.source} with fingerprint {backbone.fingerprint[:12]}…",
            "the model of the finished cells",
            "Give the new model another name in the plan, or another folder with --out.",
        )
        raise ConfigError(str(folder / RESULTS), [fault])


def _run_cell(plan: Plan, cell: Cell, data: DataSet, setup: Setup) -> Record:
    backbone = setup.backbone
    start = time.perf_counter()
    with PeakMemory(backbone.device) as memory:
        measured = plan.methods[cell.method].run(setup)
    evaluations, costs = measured.evaluations, measured.costs
    return Record(
        cell=cell,
        decides=plan.decides(cell),
        data=data.digest,
        commit=provenance.commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=provenance.machine(),
        fingerprint=backbone.fingerprint,
        dtype=backbone.dtype,
        accuracy=sum(evaluation.accuracy for evaluation in evaluations.values()) / len(evaluations),
        figures=_mean_figures(list(evaluations.values())),
        macro_f1=sum(_second(evaluation) for evaluation in evaluations.values()) / len(evaluations),
        second=next((name for evaluation in evaluations.values() for name in evaluation.figures), "accuracy"),
        calibration_error=sum(item.confidence.calibration_error for item in evaluations.values()) / len(evaluations),
        hits={name: "".join(str(int(hit)) for hit in evaluation.hits) for name, evaluation in evaluations.items()},
        rounds=measured.rounds,
        chosen_round=measured.chosen_round,
        curve=tuple(CurvePoint(round=p.round, accuracy=_finite(p.accuracy), loss=_finite(p.loss)) for p in measured.curve),
        bytes_up=costs.bytes_up,
        bytes_down=costs.bytes_down,
        cpu_seconds=costs.cpu_seconds,
        test_milliseconds=1000 * costs.test_seconds,
        peak_mib=memory.mib,
        wall_seconds=time.perf_counter() - start,
        choices=measured.choices,
        settings=measured.settings,
    )


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None


def _mean_figures(evaluations: Sequence[AnyEvaluation]) -> dict[str, float]:
    """The kind's figures and numbers by name, mean over classifiers."""
    each = [{**evaluation.figures, **evaluation.numbers} for evaluation in evaluations]
    return {name: sum(figures[name] for figures in each) / len(each) for name in each[0]}


def _second(evaluation: AnyEvaluation) -> float:
    """The kind's first figure beside accuracy, macro-F1 of labels; the accuracy itself where it has none."""
    return next(iter(evaluation.figures.values()), evaluation.accuracy)
