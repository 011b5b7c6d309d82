"""Runs a plan cell by cell; what is finished is never run again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.bench import provenance
from ifedicl.bench.cells import CurvePoint, Record, load_records, now, save_records
from ifedicl.bench.costs import PeakMemory
from ifedicl.bench.datasets import DataSet, load_set
from ifedicl.bench.methods.base import Measured
from ifedicl.bench.plan import DEMO, Cell, Plan
from ifedicl.bench.setup import Setup, nothing
from ifedicl.data import dirichlet_split, draw_pool
from ifedicl.demo.fetch import demo_model
from ifedicl.errors import ConfigError, Fault
from ifedicl.settings import ModelSettings

RESULTS = Path("results.jsonl")
_EVEN = 100.0
_TEST_SEED = 0  # the test rows are the same for every cell, so that methods can be compared row by row


@dataclass(frozen=True)
class Standing:
    """How far a plan is.

    Attributes:
        finished: records of the plan's cells, in the plan's order.
        left: cells that are still to be run, in the order in which they will be.
    """

    finished: tuple[Record, ...]
    left: tuple[Cell, ...]

    @property
    def seconds_left(self) -> float | None:
        """From the mean time of finished cells of the same method; None before anything is finished."""
        if not self.finished:
            return None
        took: dict[str, list[float]] = {}
        for record in self.finished:
            took.setdefault(record.cell.method, []).append(record.wall_seconds)
        means = {method: sum(seconds) / len(seconds) for method, seconds in took.items()}
        usual = sum(means.values()) / len(means)
        return sum(means.get(cell.method, usual) for cell in self.left)


class Watcher:
    """Told of what a run does; this one does not look."""

    def started(self, cell: Cell, standing: Standing) -> None:
        """A cell is begun, and the plan is so far."""

    def progressed(self, done: int, total: int) -> None:
        """Of the present cell, so many rounds of so many are done."""

    def finished(self, record: Record) -> None:
        """A cell is finished and kept."""


def standing(plan: Plan, folder: Path) -> Standing:
    """What of a plan is finished in ``folder``.

    Raises:
        StorageError: its results cannot be read.
        DataError: a data set cannot be read, though it has finished cells.
    """
    return _standing(plan, load_records(folder / RESULTS), _Sets(plan))


def run_plan(plan: Plan, folder: Path, watcher: Watcher | None = None) -> list[Record]:
    """Run what is left of a plan.

    Args:
        plan: methods, sets, seeds and models.
        folder: holds ``results.jsonl``; cells that are finished there, under the same settings and on the same rows, are kept.
        watcher: told of what happens.

    Returns:
        The records of all cells of the plan, in its order.

    Raises:
        IfediclError: as the parts raise it. Finished cells are kept.
    """
    watcher = watcher or Watcher()
    records, sets, models = load_records(folder / RESULTS), _Sets(plan), _Models(plan)
    while (now_standing := _standing(plan, records, sets)).left:
        cell = now_standing.left[0]
        loaded = models.get(cell.model)
        _check_model(cell.model, loaded[0], now_standing.finished, folder)
        watcher.started(cell, now_standing)
        record = _run_cell(plan, cell, sets.get(cell.set), loaded, _choices(cell, now_standing.finished), watcher)
        # Another run may have finished cells in this folder meanwhile. An older record of the same cell was made under other
        # settings or on other rows.
        records = [other for other in load_records(folder / RESULTS) if other.cell != cell] + [record]
        save_records(records, folder / RESULTS)
        watcher.finished(record)
    return list(now_standing.finished)


class _Sets:
    """The plan's data sets, each read once."""

    def __init__(self, plan: Plan) -> None:
        self.get: Callable[[str], DataSet] = lru_cache(maxsize=None)(lambda name: load_set(name, plan.sets[name]))


class _Models:
    """The plan's models, one at a time."""

    def __init__(self, plan: Plan) -> None:
        self.get: Callable[[str], tuple[Backbone, ModelSettings]] = lru_cache(maxsize=1)(lambda name: self._load(plan, name))

    @staticmethod
    def _load(plan: Plan, name: str) -> tuple[Backbone, ModelSettings]:
        settings = plan.models[name].settings
        if settings.source == DEMO:
            settings = settings.model_copy(update={"source": str(demo_model())})
        backbone = load_backbone(settings)
        # Weights are read from the disk when they are first used; no cell's memory shall count them.
        backbone.hidden_states(torch.zeros((1, 1), dtype=torch.int64, device=backbone.device))
        return backbone, settings


def _standing(plan: Plan, records: Sequence[Record], sets: _Sets) -> Standing:
    by_cell = {record.cell: record for record in records}
    finished: list[Record] = []
    left: list[Cell] = []
    for cell in plan.cells():
        record = by_cell.get(cell)
        if record is not None and record.decides == plan.decides(cell) and record.data == sets.get(cell.set).digest:
            finished.append(record)
        else:
            left.append(cell)
    return Standing(tuple(finished), tuple(left))


def _check_model(name: str, backbone: Backbone, finished: Sequence[Record], folder: Path) -> None:
    """A model that changed behind its name makes other figures; they may not stand in one table."""
    if any(record.fingerprint != backbone.fingerprint for record in finished if record.cell.model == name):
        fault = Fault(
            f"models.{name}",
            f"{backbone.source} with fingerprint {backbone.fingerprint[:12]}…",
            "the model that the finished cells were run with",
            "Give the new model another name in the plan, or start in another folder with --out.",
        )
        raise ConfigError(str(folder / RESULTS), [fault])


def _choices(cell: Cell, finished: Sequence[Record]) -> Mapping[str, float]:
    """Those of the first cell of the same model, set and method in the plan's order."""
    same = (record for record in finished if _family(record.cell) == _family(cell))
    first = next(same, None)
    return {} if first is None else first.choices


def _family(cell: Cell) -> tuple[str, str, str]:
    return cell.model, cell.set, cell.method


def make_setup(
    plan: Plan,
    cell: Cell,
    data: DataSet,
    backbone: Backbone,
    model: ModelSettings,
    *,
    choices: Mapping[str, float] | None = None,
    on_progress: Callable[[int, int], None] = nothing,
) -> Setup:
    """What a method is given in a cell: pool, split and test rows drawn, everything else as the plan says.

    Methods that no seed moves see the first one, and methods that no split moves the evenest.
    """
    seed = cell.seed or 0
    pool = draw_pool(data.train, plan.pool, seed)
    hands = dirichlet_split(pool, clients=plan.clients, alpha=cell.alpha or _EVEN, seed=seed)
    return Setup(
        backbone=backbone,
        model=model,
        task=data.task,
        examples={f"client-{number:02d}": hand for number, hand in enumerate(hands, start=1)},
        test=draw_pool(data.test, plan.test_rows, _TEST_SEED),
        method=plan.method(cell.method, seed),
        choices=choices or {},
        on_progress=on_progress,
    )


def _run_cell(
    plan: Plan,
    cell: Cell,
    data: DataSet,
    loaded: tuple[Backbone, ModelSettings],
    choices: Mapping[str, float],
    watcher: Watcher,
) -> Record:
    backbone, model = loaded
    setup = make_setup(plan, cell, data, backbone, model, choices=choices, on_progress=watcher.progressed)
    start = time.perf_counter()
    with PeakMemory(backbone.device) as memory:
        measured = plan.methods[cell.method].run(setup)
    return _record(plan, cell, data, backbone, measured, memory.mib, time.perf_counter() - start)


def _record(
    plan: Plan, cell: Cell, data: DataSet, backbone: Backbone, measured: Measured, peak_mib: float, seconds: float
) -> Record:
    evaluations, costs = measured.evaluations, measured.costs
    count = len(evaluations)
    return Record(
        cell=cell,
        decides=plan.decides(cell),
        data=data.digest,
        commit=provenance.commit(),
        date=now(),
        machine=provenance.machine(),
        fingerprint=backbone.fingerprint,
        dtype=backbone.dtype,
        accuracy=sum(evaluation.accuracy for evaluation in evaluations.values()) / count,
        macro_f1=sum(evaluation.macro_f1 for evaluation in evaluations.values()) / count,
        hits={name: "".join(str(int(hit)) for hit in evaluation.hits) for name, evaluation in evaluations.items()},
        rounds=measured.rounds,
        chosen_round=measured.chosen_round,
        curve=tuple(
            CurvePoint(round=point.round, accuracy=_finite(point.accuracy), loss=_finite(point.loss))
            for point in measured.curve
        ),
        bytes_up=costs.bytes_up,
        bytes_down=costs.bytes_down,
        cpu_seconds=costs.cpu_seconds,
        test_milliseconds=1000 * costs.test_seconds,
        peak_mib=peak_mib,
        wall_seconds=seconds,
        choices=measured.choices,
        settings=measured.settings,
    )


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None
