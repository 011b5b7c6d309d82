"""Implicit federated in-context learning.

Organisations calibrate one frozen language model together, without showing each other their text. The names below are the
public ones; each is loaded when it is first used, so that ``import ifedicl`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ifedicl.adapter import Adapter, Classifier, Prediction
    from ifedicl.backbone.load import Backbone, load_backbone
    from ifedicl.data import Example, dirichlet_split, read_examples
    from ifedicl.errors import IfediclError
    from ifedicl.personal import personalise
    from ifedicl.pipelines import pipeline
    from ifedicl.runs import Federated, RunResult, federate, run, simulate
    from ifedicl.settings import Method, ModelSettings, RunSettings, load_preset, load_settings
    from ifedicl.sklearn import AdapterClassifier
    from ifedicl.task import Task

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "adapter",
    "AdapterClassifier": "sklearn",
    "Backbone": "backbone.load",
    "Classifier": "adapter",
    "Example": "data",
    "Federated": "runs",
    "IfediclError": "errors",
    "Method": "settings",
    "ModelSettings": "settings",
    "Prediction": "adapter",
    "RunResult": "runs",
    "RunSettings": "settings",
    "Task": "task",
    "dirichlet_split": "data",
    "federate": "runs",
    "load_backbone": "backbone.load",
    "load_preset": "settings",
    "load_settings": "settings",
    "personalise": "personal",
    "pipeline": "pipelines",
    "read_examples": "data",
    "run": "runs",
    "simulate": "runs",
}

__all__ = [
    "Adapter",
    "AdapterClassifier",
    "Backbone",
    "Classifier",
    "Example",
    "Federated",
    "IfediclError",
    "Method",
    "ModelSettings",
    "Prediction",
    "RunResult",
    "RunSettings",
    "Task",
    "__version__",
    "dirichlet_split",
    "federate",
    "load_backbone",
    "load_preset",
    "load_settings",
    "personalise",
    "pipeline",
    "read_examples",
    "run",
    "simulate",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
