"""Implicit federated in-context learning.

Organisations calibrate one frozen language model together, without showing each other their text. The names below are the
public ones; each is loaded when it is first used, so that ``import ifedicl`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ifedicl.version import __version__

if TYPE_CHECKING:
    from ifedicl.adapter import Adapter, Classifier, OnModel, Prediction
    from ifedicl.backbone.load import Backbone, load_backbone
    from ifedicl.confidence import Answered, Bin, Confidence
    from ifedicl.core.coefficients import Coefficients
    from ifedicl.core.readout import Readout
    from ifedicl.core.subspace import Context
    from ifedicl.core.warm_start import Start
    from ifedicl.data import dirichlet_split, read_examples
    from ifedicl.errors import IfediclError
    from ifedicl.federation.client import Client
    from ifedicl.federation.coordinator import Outcome
    from ifedicl.federation.engine import Delivery, Engine
    from ifedicl.federation.events import Begun, Delivered, Event, RoundDone, StepStarted
    from ifedicl.federation.forgetting import Forgetting
    from ifedicl.federation.handler import Handler
    from ifedicl.federation.state import Forgotten, RoundRecord, State, Traffic
    from ifedicl.kinds.any_task import AnyTask
    from ifedicl.kinds.choices import Choice, ChoiceEvaluation
    from ifedicl.kinds.choose import ChooseTask
    from ifedicl.kinds.classify import Example, Task
    from ifedicl.kinds.examples import Answer, AnyEvaluation, AnyExample, MultipleChoice
    from ifedicl.kinds.extraction import ExtractTask
    from ifedicl.kinds.label_sets import MultiLabelEvaluation, MultiLabelExample
    from ifedicl.kinds.multi_label import MultiLabelTask
    from ifedicl.kinds.passages import Passage, TextEvaluation
    from ifedicl.kinds.scale import OrderedEvaluation
    from ifedicl.ledger.entries import Head
    from ifedicl.ledger.receipts import Receipt
    from ifedicl.metrics import Comparison, Evaluation, Tally
    from ifedicl.personal import Personal, personalise
    from ifedicl.pipelines import Pipeline, Scored, pipeline
    from ifedicl.runs import Cache, Federated, RunData, RunOptions, RunResult, federate, forget, run, simulate
    from ifedicl.settings import Coordination, Method, ModelSettings, RunSettings, load_preset, load_settings
    from ifedicl.sklearn import AdapterClassifier

_MODULES = {
    "adapter": ("Adapter", "Classifier", "OnModel", "Prediction"),
    "backbone.load": ("Backbone", "load_backbone"),
    "confidence": ("Answered", "Bin", "Confidence"),
    "core.coefficients": ("Coefficients",),
    "core.readout": ("Readout",),
    "core.subspace": ("Context",),
    "core.warm_start": ("Start",),
    "data": ("dirichlet_split", "read_examples"),
    "errors": ("IfediclError",),
    "federation.client": ("Client",),
    "federation.coordinator": ("Outcome",),
    "federation.engine": ("Delivery", "Engine"),
    "federation.forgetting": ("Forgetting",),
    "federation.handler": ("Handler",),
    "federation.events": ("Begun", "Delivered", "Event", "RoundDone", "StepStarted"),
    "federation.state": ("Forgotten", "RoundRecord", "State", "Traffic"),
    "kinds.any_task": ("AnyTask",),
    "kinds.choices": ("Choice", "ChoiceEvaluation"),
    "kinds.choose": ("ChooseTask",),
    "kinds.examples": ("Answer", "AnyEvaluation", "AnyExample", "MultipleChoice"),
    "kinds.classify": ("Example", "Task"),
    "kinds.label_sets": ("MultiLabelEvaluation", "MultiLabelExample"),
    "kinds.multi_label": ("MultiLabelTask",),
    "kinds.scale": ("OrderedEvaluation",),
    "kinds.extraction": ("ExtractTask",),
    "kinds.passages": ("Passage", "TextEvaluation"),
    "ledger.entries": ("Head",),
    "ledger.receipts": ("Receipt",),
    "metrics": ("Comparison", "Evaluation", "Tally"),
    "personal": ("Personal", "personalise"),
    "pipelines": ("Pipeline", "Scored", "pipeline"),
    "runs": ("Cache", "Federated", "RunData", "RunOptions", "RunResult", "federate", "forget", "run", "simulate"),
    "settings": ("Coordination", "Method", "ModelSettings", "RunSettings", "load_preset", "load_settings"),
    "sklearn": ("AdapterClassifier",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Adapter",
    "AdapterClassifier",
    "Answer",
    "Answered",
    "AnyEvaluation",
    "AnyExample",
    "AnyTask",
    "Backbone",
    "Begun",
    "Bin",
    "Cache",
    "Choice",
    "ChoiceEvaluation",
    "ChooseTask",
    "Classifier",
    "Client",
    "Coefficients",
    "Comparison",
    "Confidence",
    "Context",
    "Coordination",
    "Delivered",
    "Delivery",
    "Engine",
    "Evaluation",
    "Event",
    "Example",
    "ExtractTask",
    "Federated",
    "Forgetting",
    "Forgotten",
    "Handler",
    "Head",
    "IfediclError",
    "Method",
    "ModelSettings",
    "MultiLabelEvaluation",
    "MultiLabelExample",
    "MultiLabelTask",
    "MultipleChoice",
    "OnModel",
    "OrderedEvaluation",
    "Outcome",
    "Passage",
    "Personal",
    "Pipeline",
    "Prediction",
    "Readout",
    "Receipt",
    "RoundDone",
    "RoundRecord",
    "RunData",
    "RunOptions",
    "RunResult",
    "RunSettings",
    "Scored",
    "Start",
    "State",
    "StepStarted",
    "Tally",
    "Task",
    "TextEvaluation",
    "Traffic",
    "__version__",
    "dirichlet_split",
    "federate",
    "forget",
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
