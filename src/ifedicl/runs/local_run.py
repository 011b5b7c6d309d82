"""A whole run on this machine: settings and a folder in, an adapter and its figures out. Killed at any moment, it resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ifedicl.backbone.load import Backbone, fingerprint, load_backbone
from ifedicl.core.vectors import Array32
from ifedicl.data import Example
from ifedicl.federation.coordinator import Starter
from ifedicl.federation.driver import Federated, RunOptions
from ifedicl.federation.events import Event, ignore
from ifedicl.federation.run_folder import RunFolder
from ifedicl.metrics import Evaluation
from ifedicl.owner.endpoint import public_examples
from ifedicl.runs.client_data import client_examples, test_examples
from ifedicl.runs.simulated import federate, simulate, zero_shot_adapter
from ifedicl.settings import RunSettings
from ifedicl.store import open_store, requests
from ifedicl.store.records import TaskKey
from ifedicl.store.requests import Answer
from ifedicl.store.signature import reference


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        federated: the adapter and how it came to be; None where it came out of the task cache.
        clients: examples of each client; none where nothing was read.
        zero_shot: the raw model on the test file; None where the config names none.
        test: the adapter on the test file, likewise.
        answer: what the task cache had; None where none was named.
    """

    federated: Federated | None
    clients: Mapping[str, Sequence[Example]]
    zero_shot: Evaluation | None
    test: Evaluation | None
    answer: Answer | None = None


@dataclass(frozen=True)
class Cache:
    """Which task cache a run asks.

    Attributes:
        url: as :func:`ifedicl.store.open_store` takes it.
        federation: id; nothing is found across it.
        recalibrate: calibrate even where the answer is stored.
    """

    url: str
    federation: str
    recalibrate: bool = False


def run(
    settings: RunSettings,
    folder: Path,
    *,
    resume: bool = False,
    more_rounds: int = 0,
    observer: Callable[[Event], None] = ignore,
    cache: Cache | None = None,
) -> RunResult:
    """Read data, load the model, run the federation, save the adapter, and read the test file once at the end.

    Args:
        settings: the config.
        folder: where checkpoint, metrics, adapter and the clients' ledgers go.
        resume: go on from the folder's checkpoint.
        more_rounds: after a finished run, vectorise examples added since and calibrate so many rounds more.
        observer: called with each event of the run.
        cache: a task cache that is looked up first and takes what is calibrated; None: no cache.

    Raises:
        ConfigError: the folder holds another run, and neither ``resume`` nor ``more_rounds`` was asked for; or none, and one of
            them was.
        IfediclError: as the parts raise it.
    """
    run_folder = RunFolder(folder)
    run_folder.check(resume=resume, more_rounds=more_rounds)
    options = RunOptions(settings.coordination, resume=resume, more_rounds=more_rounds, observer=observer)
    backbone = lru_cache(lambda: load_backbone(settings.model))  # once, and only if it is needed
    if cache is None:
        return _calibrated(settings, run_folder, backbone, options)
    return _cached(settings, run_folder, backbone, options, cache)


def _cached(
    settings: RunSettings, folder: RunFolder, backbone: Callable[[], Backbone], options: RunOptions, cache: Cache
) -> RunResult:
    """Out of the task cache, or into it."""
    key = TaskKey.of(cache.federation, fingerprint(settings.model), settings.task, settings.method)

    def centre() -> Array32:
        return reference(backbone(), settings.vectors.read_position)

    with closing(open_store(cache.url)) as store:
        results: list[RunResult] = []

        def calibrate(starter: Starter) -> Federated:
            results.append(_calibrated(settings, folder, backbone, replace(options, starter=starter)))
            federated = results[-1].federated
            assert federated is not None
            return federated

        answer, federated = requests.request(store, key, settings.method, calibrate, centre, recalibrate=cache.recalibrate)
    if federated is not None:
        return replace(results[-1], answer=answer)
    answer.adapter.save(folder.adapter)
    return RunResult(None, {}, None, None, answer)


def _calibrated(settings: RunSettings, folder: RunFolder, load: Callable[[], Backbone], options: RunOptions) -> RunResult:
    examples, test, public = client_examples(settings), test_examples(settings), public_examples(settings)
    backbone = load()
    model, task, method = settings.model, settings.task, settings.method
    clients = simulate(backbone, task, examples, seed=settings.seed)
    journal = folder.journal(task, examples)
    federated = folder.carry_out(
        lambda options: federate(clients, model, task, method, ledgers=folder.ledgers, public=public, options=options),
        options,
        journal,
    )
    zero_shot = evaluation = None
    if test:
        zero_shot = zero_shot_adapter(backbone, model, task).classifier(backbone).evaluate(test)
        evaluation = federated.adapter.classifier(backbone).evaluate(test)
    journal.finish(federated.outcome, {"zero-shot": zero_shot, "adapter": evaluation})
    return RunResult(federated, examples, zero_shot, evaluation)
