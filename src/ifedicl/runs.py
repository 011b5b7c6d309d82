"""A whole run on this machine: settings and a folder in, an adapter and its figures out. Killed at any moment, it resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ifedicl import seeds
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone, fingerprint, load_backbone
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import WRITES, Array32
from ifedicl.data import Example, dirichlet_split, draw_pool, read_examples
from ifedicl.errors import ConfigError, DataError, Fault
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator, Outcome, Starter
from ifedicl.federation.engine import Door, Engine
from ifedicl.federation.events import Event, each, ignore
from ifedicl.federation.journal import Journal
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.results import adapter_of
from ifedicl.metrics import Evaluation
from ifedicl.owner.endpoint import Mode, gradients_left, public_examples
from ifedicl.settings import Coordination, Method, ModelSettings, RunSettings, SplitSettings
from ifedicl.store import open_store, requests
from ifedicl.store.records import TaskKey
from ifedicl.store.requests import Answer
from ifedicl.store.signature import reference
from ifedicl.task import Task

CHECKPOINT = Path("checkpoint") / "state.safetensors"
ADAPTER = Path("adapter")
METRICS = Path("metrics.jsonl")
LEDGERS = Path("ledgers")
_USUAL = Coordination()


@dataclass(frozen=True)
class Federated:
    """A finished federation in memory.

    Attributes:
        adapter: ready to be saved.
        outcome: rounds, choice, gate and traffic.
    """

    adapter: Adapter
    outcome: Outcome


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
        anew: calibrate even where the answer is stored.
    """

    url: str
    federation: str
    anew: bool = False


def client_examples(settings: RunSettings) -> dict[str, tuple[Example, ...]]:
    """Each client's labelled text, read from its file or dealt out.

    Raises:
        DataError: a file or its rows are wrong, or all clients together hold one class only.
    """
    data, task = settings.data, settings.task

    def read(source: str) -> tuple[Example, ...]:
        return read_examples(source, task, text=data.text_column, label=data.label_column)

    if data.clients is not None:
        clients = {name: read(source) for name, source in data.clients.items()}
    else:
        assert data.train is not None
        clients = simulated_clients(read(data.train), data.split, settings.seed)
    check_classes(task, clients)
    return clients


def simulated_clients(examples: Sequence[Example], split: SplitSettings, seed: int) -> dict[str, tuple[Example, ...]]:
    """Draw a pool and deal it out.

    Raises:
        DataError: the pool is too small for that many clients.
    """
    pool = draw_pool(examples, split.pool or len(examples), seed)
    hands = dirichlet_split(pool, clients=split.clients, alpha=split.alpha, seed=seed)
    return {f"client-{number:02d}": hand for number, hand in enumerate(hands, start=1)}


def check_classes(task: Task, clients: Mapping[str, Sequence[Example]]) -> None:
    """Refuse what nothing can be learnt from.

    Raises:
        DataError: all clients together hold one class only or nothing, or a label that the task does not have.
    """
    held = {example.label for examples in clients.values() for example in examples}
    if unknown := held - set(task.labels):
        raise DataError(f"{len(unknown)} labels are not in the task; allowed: {', '.join(task.labels)}")
    if not held:
        raise DataError("no client holds any example; at least one client with examples of two labels is needed")
    if len(held) < 2:
        raise DataError(
            f"all examples have the label {next(iter(held))!r}; at least two of {', '.join(task.labels)} are needed. "
            "Add examples of another label"
        )


def simulate(backbone: Backbone, task: Task, examples: Mapping[str, Sequence[Example]], *, seed: int = 0) -> tuple[Client, ...]:
    """Clients in this process, all over one shared model. They may take part in any number of federations.

    Args:
        backbone: the frozen model, loaded.
        task: what they will be asked.
        examples: each one's labelled text, in the order in which their replies are aggregated.
        seed: of the run.

    Raises:
        DataError: all clients together hold one class only or nothing, or a label that the task does not have.
    """
    check_classes(task, examples)
    return tuple(
        Client(name, own, backbone, secret=seeds.derive(seed, "secret", name).to_bytes(8, "little"))
        for name, own in examples.items()
    )


def federate(
    clients: Sequence[Client],
    model: ModelSettings,
    task: Task,
    method: Method,
    *,
    coordination: Coordination = _USUAL,
    engine: Callable[[Sequence[Door]], Engine] = LocalEngine,
    ledgers: Path | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    more_rounds: int = 0,
    observer: Callable[[Event], None] = ignore,
    starter: Starter | None = None,
    public: Sequence[Example] = (),
    left: Mapping[str, int] | None = None,
) -> Federated:
    """Run the federation of simulated clients.

    Args:
        clients: one or more, in the order in which their replies are aggregated.
        model: how their model was named, for the adapter.
        task: what is asked.
        method: the settings.
        coordination: how the run is driven.
        engine: what carries the messages.
        ledgers: a folder for each client's ledger of what left it; left out: none is kept.
        checkpoint: written after each step.
        resume: go on from the checkpoint.
        more_rounds: after a finished run, go on with the examples that were added.
        observer: told of what happens.
        starter: gives a warm start, as :class:`Coordinator` says.
        public: no one's data; where noise is promised, vectors come from it.
        left: where noise is promised, how many gradients of this run left each client before, by its name.

    Raises:
        DataError: a text has no tokens.
        TaskError: the model cannot score the task.
        FederationError: too few clients gave a usable reply.
        StorageError: the checkpoint cannot be written.
    """
    mode = Mode.of(clients, method, public, left or {})
    for client in mode.clients:
        client.prepare(task, method)
    backbone = clients[0].backbone
    coordinator = Coordinator(
        mode.carrier(engine, ledgers),
        task,
        method,
        backbone.shape,
        coordination=coordination,
        checkpoint_file=checkpoint,
        observer=observer,
        starter=starter,
    )
    outcome = coordinator.run(resume=resume, more_rounds=more_rounds)
    adapter = adapter_of(outcome, task, method, model, backbone.fingerprint, len(clients), mode.spent())
    return Federated(adapter, outcome)


def zero_shot_adapter(backbone: Backbone, model: ModelSettings, task: Task) -> Adapter:
    """The raw model in the form of an adapter that changes nothing."""
    return Adapter(
        task=task,
        context=Context(np.zeros((backbone.layers, len(WRITES), backbone.width), dtype=np.float32)),
        coefficients=Coefficients.identity(Form(backbone.layers)),
        model=model,
        fingerprint=backbone.fingerprint,
    )


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
        observer: told of what happens.
        cache: a task cache that is looked up first and takes what is calibrated; None: no cache.

    Raises:
        ConfigError: the folder holds another run, and neither ``resume`` nor ``more_rounds`` was asked for; or none, and one of
            them was.
        IfediclError: as the parts raise it.
    """
    check_folder(folder, resume=resume, more_rounds=more_rounds)

    backbone = lru_cache(lambda: load_backbone(settings.model))  # once, and only if it is needed

    def calibrated(starter: Starter | None = None) -> RunResult:
        return _calibrated(
            settings, folder, backbone, resume=resume, more_rounds=more_rounds, observer=observer, starter=starter
        )

    if cache is None:
        return calibrated()
    return _cached(settings, folder, cache, backbone, calibrated)


def _cached(
    settings: RunSettings,
    folder: Path,
    cache: Cache,
    backbone: Callable[[], Backbone],
    calibrated: Callable[[Starter], RunResult],
) -> RunResult:
    """Out of the task cache, or into it."""
    key = TaskKey.of(cache.federation, fingerprint(settings.model), settings.task, settings.method)

    def centre() -> Array32:
        return reference(backbone(), settings.vectors.read_position)

    with closing(open_store(cache.url)) as store:
        results: list[RunResult] = []

        def calibrate(starter: Starter) -> Federated:
            results.append(calibrated(starter))
            federated = results[-1].federated
            assert federated is not None
            return federated

        answer, federated = requests.request(store, key, settings.method, calibrate, centre, anew=cache.anew)
    if federated is not None:
        return replace(results[-1], answer=answer)
    answer.adapter.save(folder / ADAPTER)
    return RunResult(None, {}, None, None, answer)


def _calibrated(
    settings: RunSettings,
    folder: Path,
    load: Callable[[], Backbone],
    *,
    resume: bool,
    more_rounds: int,
    observer: Callable[[Event], None],
    starter: Starter | None,
) -> RunResult:
    clients = client_examples(settings)
    test = _test_examples(settings)
    backbone = load()
    journal = Journal(folder / METRICS, settings.task, clients)
    federated = federate(
        simulate(backbone, settings.task, clients, seed=settings.seed),
        settings.model,
        settings.task,
        settings.method,
        coordination=settings.coordination,
        ledgers=folder / LEDGERS,
        checkpoint=folder / CHECKPOINT,
        resume=resume or more_rounds > 0,
        more_rounds=more_rounds,
        observer=each(journal, observer),
        starter=starter,
        public=public_examples(settings),
        left=gradients_left(settings, folder / LEDGERS, tuple(clients), backbone.fingerprint),
    )
    federated.adapter.save(folder / ADAPTER)
    zero_shot = evaluation = None
    if test:
        zero_shot = zero_shot_adapter(backbone, settings.model, settings.task).classifier(backbone).evaluate(test)
        evaluation = federated.adapter.classifier(backbone).evaluate(test)
    outcome = federated.outcome
    journal.finish(outcome.state, outcome.chosen_round, outcome.gate, {"zero-shot": zero_shot, "adapter": evaluation})
    return RunResult(federated, clients, zero_shot, evaluation)


def has_begun(folder: Path) -> bool:
    """Whether a run has done anything in a folder; it may have died before its first checkpoint."""
    return (folder / CHECKPOINT).exists() or (folder / METRICS).exists()


def check_folder(folder: Path, *, resume: bool, more_rounds: int) -> None:
    """Refuse to start over a run that is there, and to go on with one that is not.

    Raises:
        ConfigError: either.
    """
    exists = (folder / CHECKPOINT).exists()
    if resume and not has_begun(folder):
        remedy = "Name the run's folder with --out, or leave --resume out to begin one."
        raise ConfigError("run", [Fault("out", str(folder), "the folder of a run that has begun", remedy)])
    if exists and not (resume or more_rounds):
        remedy = "Go on with --resume, or choose another folder with --out."
        raise ConfigError("run", [Fault("out", str(folder), "a folder without a run in it", remedy)])
    if more_rounds and not exists:
        remedy = "Run it first; more rounds go on from a finished run."
        raise ConfigError("run", [Fault("out", str(folder), "the folder of a finished run", remedy)])


def _test_examples(settings: RunSettings) -> tuple[Example, ...]:
    data = settings.data
    if data.test is None:
        return ()
    return read_examples(data.test, settings.task, text=data.text_column, label=data.label_column)
