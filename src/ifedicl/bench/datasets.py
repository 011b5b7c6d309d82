"""Labelled sets for the benchmark: a folder, a hub name, or the demo's sentences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifedicl.bench.plan import SetSettings
from ifedicl.bench.plan_file import DEMO, TEST, TRAIN, data_file
from ifedicl.data import read_examples
from ifedicl.demo.fetch import demo_places
from ifedicl.demo.story import TASK
from ifedicl.errors import DataError
from ifedicl.kinds import kind_of_task
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyExample
from ifedicl.rows import DATA_ENDINGS, HUB_PREFIX, rows_of
from ifedicl.settings import validated

_DEMO_TRAIN, _DEMO_TEST = 180, 60  # sentences of each of the four places


@dataclass(frozen=True)
class DataSet:
    """Task, training rows from which the pool is drawn, and test rows."""

    task: AnyTask
    train: tuple[AnyExample, ...]
    test: tuple[AnyExample, ...]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the task, all rows in order and the number of training rows."""
        content = hashlib.sha256(f"{self.task.digest} {len(self.train)}".encode())
        for example in (*self.train, *self.test):
            content.update(example.key.encode())
        return content.hexdigest()


def load_set(name: str, settings: SetSettings) -> DataSet:
    """Read one data set of a plan.

    Raises:
        DataError: a file is missing or incomplete, or has a label that the task does not have.
        ConfigError: labels and template do not fit together.
        DownloadError: the demo's text cannot be downloaded.
    """
    if settings.source == DEMO:
        places = demo_places(pool=_DEMO_TRAIN, test=_DEMO_TEST, seed=0).values()
        return DataSet(TASK, sum((place.pool for place in places), ()), sum((place.test for place in places), ()))
    train, test = _sources(settings.source)
    task = _task(name, settings, train)

    def read(source: str) -> tuple[AnyExample, ...]:
        return read_examples(source, task, text=settings.text_column, label=settings.label_column)

    return DataSet(task, read(train), read(test))


def _sources(source: str) -> tuple[str, str]:
    if source.startswith(HUB_PREFIX):
        return f"{source}/train", f"{source}/test"
    if not Path(source).is_dir():
        raise DataError(f"source: received {source}; no such folder. Give its parent folder with --data, or correct the plan.")
    files = [data_file(Path(source), name) for name in (TRAIN, TEST)]
    if None in files:
        raise DataError(f"source: {source} has no train or no test file; allowed endings: {', '.join(DATA_ENDINGS)}. Add it")
    train, test = map(str, files)
    return train, test


def _task(name: str, settings: SetSettings, train: str) -> AnyTask:
    meta = _meta(settings.source)
    try:
        kind = kind_of_task(meta)
    except ValueError as error:
        raise DataError(f"{settings.source}/meta.json: {error}") from error
    values: dict[str, Any] = {"name": name, **({"label_words": settings.label_words} if settings.label_words else {})}
    if "labels" in kind.model_fields:
        values["labels"] = settings.labels or meta.get("labels") or _labels(settings, train)
    template = settings.template or meta.get("template")
    if template is not None:
        values["template"] = template
    return validated(kind, values, f"data set {name}")


def _meta(source: str) -> dict[str, Any]:
    path = Path(source) / "meta.json"
    if source.startswith(HUB_PREFIX) or not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: received no valid JSON ({error}). The file may be incomplete.") from error
    if not isinstance(meta, dict):
        raise DataError(f"{path}: received a {type(meta).__name__}; allowed: an object with labels and template.")
    return meta


def _labels(settings: SetSettings, train: str) -> Sequence[str]:
    """Labels of the training rows in alphabetical order."""
    column = settings.label_column
    return sorted({str(row[column]) for _, row in rows_of(train, (column,)) if row.get(column) is not None})
