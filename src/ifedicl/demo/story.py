"""The demo: four organisations, each alone and then together, on a real model and real text."""

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
from ifedicl.inspection import what_leaves
from ifedicl.metrics import Evaluation, mean_hits, paired_p
from ifedicl.progress import LOADING, counted, federation_bars, waiting
from ifedicl.report import Figures, Report, print_report, write_report
from ifedicl.settings import Method, ModelSettings, load_preset
from ifedicl.task import Task

TASK = Task(name="sentiment of a sentence", labels=LABELS, template="Text: {text}\nSentiment:")
# Ours, not out of the data.
SENTENCES = (
    "The nurse called me back within minutes and explained everything kindly.",
    "The form has four pages and is printed on both sides.",
    "After three weeks of waiting the machine arrived broken.",
)
POOL, TEST = 96, 45
_LEVEL = 0.05


def tell(
    folder: Path, console: Console, *, seed: int = 0, method: Method | None = None, pool: int = POOL, test: int = TEST
) -> Report:
    """Run the demo, print it and write ``report.html``.

    Args:
        folder: where adapter, metrics and report go.
        console: where tables are printed.
        seed: of the whole run.
        method: the settings; None: those of ``demo.toml``.
        pool: sentences that each place's client holds.
        test: sentences of each place that no client sees.

    Raises:
        DownloadError: model or text could not be fetched.
        StorageError: a file could not be written.
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
    stage = _Stage(backbone, model, method, places)

    rows = [stage.measured("zero-shot", runs.zero_shot_adapter(backbone, model, TASK), 0.0)]
    for client in clients:
        alone, seconds = stage.federated(f"{client.name} alone", [client])
        # Its own few gate examples could prove nothing, and the raw model would stand in its place: shown is what it learnt.
        learnt = replace(alone.adapter, coefficients=alone.outcome.state.best, readout=alone.outcome.state.readout)
        rows.append(stage.measured(f"{client.name} alone", learnt, seconds))
    kept = RunFolder(folder)
    journal = kept.journal(TASK, examples)
    together, seconds = stage.federated("the federation", clients, journal, kept.ledgers)
    together.adapter.save(kept.adapter)
    saved = Adapter.load(kept.adapter)
    rows.append(stage.measured("the federation", saved, seconds))
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
    console.print(f"What left each client, and nothing else (its ledger: {kept.ledgers}):", highlight=False)
    for words in what_left(together.outcome.state.traffic, method):
        console.print(f"  {words}", highlight=False)
    write_report(report, kept.report)
    return report


def what_left(traffic: Sequence[Traffic], method: Method) -> list[str]:
    """In words and in bytes, all that a client sent.

    Args:
        traffic: every exchange of the run.
        method: its settings.
    """
    clients = len({item.client for item in traffic})
    sent: dict[str, int] = {}
    for item in traffic:
        sent[item.step] = sent.get(item.step, 0) + item.bytes_up
    parts = ", ".join(f"{step} {size / clients / 1024:.1f} KB" for step, size in sent.items())
    return [*what_leaves(method), f"in bytes, by request, the mean of the clients: {parts}"]


def verdicts(evaluations: Sequence[Evaluation]) -> list[str]:
    """Whether the federation beats zero-shot and the mean of the clients alone, in words, by a paired test.

    Args:
        evaluations: zero-shot first, then each client alone, the federation last.
    """
    zero_shot, *alone, together = evaluations
    against = (("zero-shot", zero_shot.hits), ("the mean of the clients alone", mean_hits(alone)))
    return [_verdict(name, together.hits, hits) for name, hits in against]


def _verdict(name: str, together: np.ndarray, other: np.ndarray) -> str:
    difference, p = float(together.mean() - other.mean()), paired_p(together, other)
    figures = f"{100 * difference:+.1f} points on {len(together)} test sentences, paired p = {p:.4f}"
    if p < _LEVEL and difference > 0:
        return f"The federation beats {name}: {figures}."
    return f"The federation does NOT beat {name}: {figures}."


class _Stage:
    """What all acts of the demo share."""

    def __init__(self, backbone: Backbone, model: ModelSettings, method: Method, places: Mapping[str, Place]) -> None:
        self._backbone = backbone
        self._model = model
        self._method = method
        self._test = [example for place in places.values() for example in place.test]
        self._spans = {name: len(place.test) for name, place in places.items()}
        self._raw: Evaluation | None = None

    def federated(
        self,
        name: str,
        clients: Sequence[Client],
        watching: Callable[[Event], None] = ignore,
        ledgers: Path | None = None,
    ) -> tuple[runs.Federated, float]:
        """A finished federation and its seconds."""
        start = time.perf_counter()
        with federation_bars(name, self._method.rounds.rounds) as bars:
            options = runs.RunOptions(observer=each(watching, bars))
            result = runs.federate(clients, self._model, TASK, self._method, ledgers=ledgers, options=options)
        return result, time.perf_counter() - start

    def measured(self, name: str, adapter: Adapter, seconds: float) -> Figures:
        """An adapter on everyone's test text; where its gate stayed shut it is the raw model, which is read once."""
        raw = not adapter.coefficients.active.any()
        evaluation = self._raw if raw and self._raw is not None else self._evaluated(name, adapter)
        if raw:
            self._raw = evaluation
        return Figures(name, evaluation, self._by_place(evaluation), seconds)

    def _evaluated(self, name: str, adapter: Adapter) -> Evaluation:
        with counted(f"{name}: test text", len(self._test)) as advance:
            return adapter.classifier(self._backbone).evaluate(self._test, on_progress=advance)

    def _by_place(self, evaluation: Evaluation) -> dict[str, float]:
        bounds = np.cumsum(list(self._spans.values()))[:-1]
        parts = np.split(evaluation.hits, bounds)
        return {name: float(part.mean()) for name, part in zip(self._spans, parts, strict=True)}
