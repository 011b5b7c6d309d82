"""A whole run on this machine: from settings and a folder to an adapter and its figures. A killed run can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.source import fingerprint
from ifedicl.core.vectors import Array32
from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.checkpoint import load_of
from ifedicl.federation.coordinator import Starter
from ifedicl.federation.driver import Federated, RunOptions
from ifedicl.federation.events import Event, ignore
from ifedicl.federation.forgetting import Forgetting
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.run_folder import RunFolder
from ifedicl.kinds.examples import AnyEvaluation, AnyExample
from ifedicl.owner.endpoint import public_texts
from ifedicl.runs.client_data import RunData
from ifedicl.runs.forget_lines import ForgetLines
from ifedicl.runs.simulated import federate, simulate, zero_shot_adapter
from ifedicl.settings import PRIVATE_DTYPE, ModelSettings, RunSettings
from ifedicl.store import open_store, requests
from ifedicl.store.records import TaskKey
from ifedicl.store.requests import Answer
from ifedicl.store.signature import reference


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        federated: the adapter and the outcome of the federation; None if the adapter is from the task cache.
        clients: examples of each client; none if the adapter is from the task cache.
        zero_shot: figures of the raw model on the test file; None without a test file.
        test: figures of the adapter on the test file; None without a test file.
        answer: the task cache's answer; None without a task cache.
    """

    federated: Federated | None
    clients: Mapping[str, Sequence[AnyExample]]
    zero_shot: AnyEvaluation | None
    test: AnyEvaluation | None
    answer: Answer | None = None


@dataclass(frozen=True)
class Cache:
    """The task cache of a run.

    Attributes:
        url: as :func:`ifedicl.store.open_store` takes it.
        federation: id of the federation; adapters of other federations are not found.
        recalibrate: calibrate even if an adapter is stored.
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
    data: RunData | None = None,
) -> RunResult:
    """Read data, load the model, run the federation, save the adapter, and read the test file once at the end.

    Args:
        settings: the config.
        folder: for checkpoint, metrics, adapter and the clients' ledgers.
        resume: continue from the folder's checkpoint.
        more_rounds: after a finished run: vectorise new examples and calibrate for this number of further rounds.
        observer: called with each event of the run.
        cache: a task cache that may have the adapter, and stores a new one; None: no cache.
        data: the text of the run; None: it is read here, unless the cache has the adapter.

    Raises:
        ConfigError: the folder has a run, and neither ``resume`` nor ``more_rounds`` is given; or it has none, and one is; or
            private mode in half precision.
        IfediclError: any other error of the run.
    """
    model = _model_of(settings)
    run_folder = RunFolder(folder)
    run_folder.check(resume=resume, more_rounds=more_rounds)
    options = RunOptions(settings.coordination, resume=resume, more_rounds=more_rounds, observer=observer)
    load = lru_cache(lambda: load_backbone(model))  # once, and only if it is needed
    read = lru_cache(lambda: data or RunData.read(settings))

    def calibrate(options: RunOptions) -> RunResult:
        return _calibrate(settings, run_folder, read(), load, options)

    if cache is None:
        return calibrate(options)
    return _look_up_or_calibrate(settings, run_folder, load, calibrate, options, cache)


def forget(
    settings: RunSettings,
    folder: Path,
    forgetting: Forgetting,
    *,
    observer: Callable[[Event], None] = ignore,
    data: RunData | None = None,
) -> RunResult:
    """Remove shares from a finished run, go on without them, and note it in the adapter and in the ledgers of who left.

    The ledgers' lines are on the disk before anything is changed. If the process dies, the same call finishes the work.

    Args:
        settings: the config, in which clients that left are no longer named and removed examples are gone from the files.
        folder: of the run.
        forgetting: what is removed.
        observer: called with each event of the run.
        data: the text of the run; None: it is read here.

    Raises:
        ConfigError: there is no finished run, its clients are not named in the config, or it cannot forget this.
        IfediclError: any other error of the run.
    """
    run_folder = RunFolder(folder)
    run_folder.check_finished()
    if settings.data.clients is None:
        fault = Fault("data", "one file, split by a draw", "one file a client", "A drawn client has no text of its own.")
        raise ConfigError("forget", [fault])
    model, read = _model_of(settings), data or RunData.read(settings)
    options = RunOptions(settings.coordination, observer=observer, forgetting=forgetting)
    return _calibrate(settings, run_folder, read, lambda: load_backbone(model), options)


def _model_of(settings: RunSettings) -> ModelSettings:
    """The model to load. In private mode ``dtype = "auto"`` is float32, whatever the processor has units for.

    Raises:
        ConfigError: private mode in half precision.
    """
    if not settings.promises_noise:
        return settings.model
    if settings.model.dtype not in ("auto", PRIVATE_DTYPE):
        allowed = f'"{PRIVATE_DTYPE}" or "auto" in privacy.mode "private"'
        remedy = "Gradients that are clipped for the noise are computed in it. Change the line or leave it out."
        raise ConfigError("private mode", [Fault("model.dtype", f'"{settings.model.dtype}"', allowed, remedy)])
    return settings.model.model_copy(update={"dtype": PRIVATE_DTYPE})


def _look_up_or_calibrate(
    settings: RunSettings,
    folder: RunFolder,
    load: Callable[[], Backbone],
    calibrate: Callable[[RunOptions], RunResult],
    options: RunOptions,
    cache: Cache,
) -> RunResult:
    """Take the adapter from the task cache, or calibrate one and store it."""
    key = TaskKey.of(cache.federation, fingerprint(settings.model), settings.task, settings.method)
    results: list[RunResult] = []

    def centre() -> Array32:
        return reference(load(), settings.vectors.read_position)

    def calibrated(starter: Starter) -> Federated:
        results.append(calibrate(replace(options, starter=starter)))
        assert results[-1].federated is not None
        return results[-1].federated

    with closing(open_store(cache.url)) as store:
        answer, federated = requests.request(store, key, settings.method, calibrated, centre, recalibrate=cache.recalibrate)
    if federated is not None:
        return replace(results[-1], answer=answer)
    with folder.held():
        answer.adapter.save(folder.adapter)
    return RunResult(None, {}, None, None, answer)


def _calibrate(
    settings: RunSettings, folder: RunFolder, data: RunData, load: Callable[[], Backbone], options: RunOptions
) -> RunResult:
    examples, public = data.clients, public_texts(settings.data.public, settings.data.text_column)
    backbone = load()
    model, task, method = settings.model, settings.task, settings.method
    clients = simulate(backbone, task, examples, seed=settings.seed)
    journal, lines = folder.journal(task, examples), ForgetLines(folder.ledgers)

    def work(options: RunOptions) -> Federated:
        if options.forgetting is not None:
            state = load_of(Manifest.of(task, method, backbone.shape).run, folder.checkpoint)
            assert state is not None  # the caller has checked that the run has finished
            interrupted = lines.begin(options.forgetting, state, method)
            options = replace(options, resume=interrupted)
        return federate(clients, model, task, method, ledgers=folder.ledgers, public=public, options=options)

    federated = folder.carry_out(work, options, journal)
    zero_shot = evaluation = None
    if data.test:
        zero_shot = zero_shot_adapter(backbone, model, task).on_model(backbone).evaluate(data.test)
        evaluation = federated.adapter.on_model(backbone).evaluate(data.test)
    journal.finish(federated.outcome, {"zero-shot": zero_shot, "adapter": evaluation})
    lines.finish(federated.outcome.state)
    return RunResult(federated, examples, zero_shot, evaluation)
