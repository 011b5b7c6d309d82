"""Figures for MLflow. Extra ``mlflow``. No state of MLflow's own "active run" is touched.

MLflow reports its use to its makers unless told not to; we tell it so before it is imported.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from ifedicl.errors import ConfigError, Fault
from ifedicl.settings import Method
from ifedicl.tracking.figures import Tracker

EXPERIMENT = "ifedicl"


class _Run:
    def __init__(self, client: MlflowClient, run: str) -> None:
        self._client, self._run = client, run

    def log(self, figures: Mapping[str, float], step: int, /) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, float(value), now, step) for name, value in figures.items()])


@contextmanager
def mlflow(uri: str, name: str, method: Method) -> Iterator[Tracker]:
    """A tracker that is one run in MLflow, in the experiment ``ifedicl``; its parameters are the method's settings.

    Args:
        uri: of the tracking server or store, such as ``http://localhost:5000`` or ``sqlite:///mlflow.db``.
        name: of the run.
        method: without the task, whose prompt may hold text.

    Raises:
        ConfigError: MLflow does not answer there.
    """
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        place = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
        run = client.create_run(place, run_name=name).info.run_id
        client.log_batch(run, params=[Param(key, str(value)) for key, value in _flat(method.model_dump(mode="json"))])
    except MlflowException as error:
        reason = _without_password(str(error).splitlines()[0])[:200]
        remedy = f"Check that the server runs and the address is right ({reason})."
        received = repr(_without_password(uri))
        raise ConfigError("tracker", [Fault("mlflow", received, "the address of a tracking server", remedy)]) from None
    try:
        yield _Run(client, run)
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run, "FINISHED")


def _without_password(text: str) -> str:
    return re.sub(r"//[^/\s@]*@", "//…@", text)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ``section.name``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif value is not None:
            yield f"{before}{name}", value
