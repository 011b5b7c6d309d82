"""The demo: four organisations, each alone and then in a federation, with a real model and real text."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.demo.fetch import LABELS, Place, demo_model, demo_places
from ifedicl.federation.client import Client
from ifedicl.federation.events import Event, each, ignore
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.state import Traffic
from ifedicl.kinds.classify import Task
from ifedicl.kinds.examples import AnyEvaluation
from ifedicl.metrics import mean_hits
from ifedicl.progress import LOADING, counted, federation_bars, waiting
from ifedicl.report import Figures, Report, compare, print_report, write_report
from ifedicl.settings import Method, ModelSettings, load_preset
from ifedicl.settings.describe import what_leaves

TASK = Task(name="sentiment of a sentence", labels=LABELS, template="Text: {text}\nSentiment:")
# Written for the demo; the data do not contain them.
SENTENCES = (
    "The nurse called me back within minutes and explained everything kindly.",
    "The form has four pages and is printed on both sides.",
    "After three weeks of waiting the machine arrived broken.",
)
POOL, TEST = 96, 45


def tell(
    folder: Path, console: Console, *, seed: int = 0, method: Method | None = None, pool: int = POOL, test: int = TEST
) -> Report:
    """Run the demo, print its results and write adapter, metrics and ``report.html`` to ``folder``.

    Args:
        folder: the run folder.
        console: for tables.
        seed: seed of the whole run.
        method: the settings; default: those of ``demo.toml``.
        pool: sentences of each place's client.
        test: sentences of each place that no client sees.

    Raises:
        DownloadError: model or text cannot be downloaded.
        StorageError: a file cannot be written.
    """
    with waiting("fetching model and text (95 MB, once)"):
        places = demo_places(pool=pool, test=test, seed=seed)
        model = ModelSettings(source=str(demo_model()))
    method = (method or load_preset("demo")).model_copy(update={"seed": seed})
    with waiting(LOADING):
        backbone = load_backbone(model)
    start = time.perf_counter()
    examples = {name: place.pool for name, place in places.items()}
    clients = runs.simulate(backbone, TASK, examples, seed=seed)
    act = _Acts(backbone, model, method, places)

    rows = [act.measure("zero-shot", runs.zero_shot_adapter(backbone, model, TASK), 0.0)]
    for client in clients:
        alone, seconds = act.federate(f"{client.name} alone", [client])
        # One client's few gate examples would keep the gate closed, and the result would be zero-shot. Shown is the best round.
        best = replace(alone.adapter, coefficients=alone.outcome.state.best, readout=alone.outcome.state.readout)
        rows.append(act.measure(f"{client.name} alone", best, seconds))
    run = RunFolder(folder)
    journal = run.journal(TASK, examples)
    with run.held():
        together, seconds = act.federate("the federation", clients, journal, run.ledgers)
        together.adapter.save(run.adapter)
    saved = Adapter.load(run.adapter)
    rows.append(act.measure("the federation", saved, seconds))
    tests = {"zero-shot": rows[0].evaluation, "adapter": rows[-1].evaluation}
    journal.finish(together.outcome, tests)

    samples = saved.classifier(backbone).classify(SENTENCES)
    report = Report(
        title="ifedicl demo: four places, one frozen model",
        adapter=together.adapter,
        outcome=together.outcome,
        clients=examples,
        rows=rows,
        verdicts=verdicts([row.evaluation for row in rows]),
        samples=list(zip(SENTENCES, samples, strict=True)),
        seconds=time.perf_counter() - start,
    )
    print_report(report, console)
    console.print(f"What left each client, and nothing else (its ledger: {run.ledgers}):", highlight=False)
    for words in what_left(together.outcome.state.traffic, method):
        console.print(f"  {words}", highlight=False)
    write_report(report, run.report)
    return report


def what_left(traffic: Sequence[Traffic], method: Method) -> list[str]:
    """Everything that a client sent in a run with this traffic, in words and in bytes."""
    clients = len({item.client for item in traffic})
    sent: dict[str, int] = {}
    for item in traffic:
        sent[item.step] = sent.get(item.step, 0) + item.bytes_up
    parts = ", ".join(f"{step} {size / clients / 1024:.1f} KB" for step, size in sent.items())
    return [*what_leaves(method), f"in bytes, by request, the mean of the clients: {parts}"]


def verdicts(evaluations: Sequence[AnyEvaluation]) -> list[str]:
    """Sentences: does the federation beat zero-shot, and the mean of the clients alone, by a paired test?

    ``evaluations`` are zero-shot first, then each client alone, the federation last.
    """
    zero_shot, *alone, together = evaluations
    others = (("zero-shot", zero_shot.hits), ("the mean of the clients alone", mean_hits(alone)))
    return [compare("The federation", together, name, hits) for name, hits in others]


class _Acts:
    """Runs the parts of the demo on one model and the same test text."""

    def __init__(self, backbone: Backbone, model: ModelSettings, method: Method, places: Mapping[str, Place]) -> None:
        self._backbone = backbone
        self._model = model
        self._method = method
        self._test = [example for place in places.values() for example in place.test]
        self._sizes = {name: len(place.test) for name, place in places.items()}
        self._zero_shot: AnyEvaluation | None = None

    def federate(
        self,
        name: str,
        clients: Sequence[Client],
        watching: Callable[[Event], None] = ignore,
        ledgers: Path | None = None,
    ) -> tuple[runs.Federated, float]:
        """Run a federation; returns it and its seconds."""
        start = time.perf_counter()
        with federation_bars(name, self._method.rounds.rounds) as bars:
            options = runs.RunOptions(observer=each(watching, bars))
            result = runs.federate(clients, self._model, TASK, self._method, ledgers=ledgers, options=options)
        return result, time.perf_counter() - start

    def measure(self, name: str, adapter: Adapter, seconds: float) -> Figures:
        """Evaluate an adapter on all test text. An adapter with a closed gate is zero-shot, which is evaluated once."""
        is_zero_shot = not adapter.coefficients.active.any()
        evaluation = self._zero_shot if is_zero_shot else None
        if evaluation is None:
            with counted(f"{name}: test text", len(self._test)) as advance:
                evaluation = adapter.classifier(self._backbone).evaluate(self._test, on_progress=advance)
        if is_zero_shot:
            self._zero_shot = evaluation
        parts = np.split(evaluation.hits, np.cumsum(list(self._sizes.values()))[:-1])
        by_place = {place: float(part.mean()) for place, part in zip(self._sizes, parts, strict=True)}
        return Figures(name, evaluation, by_place, seconds)
