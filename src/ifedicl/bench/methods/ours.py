"""IFed-ICL, and the same vectors and coefficients without the federation: by one client alone, and on pooled text (I2CL)."""

from __future__ import annotations

from collections.abc import Sequence

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.bench.costs import Meter
from ifedicl.bench.methods.base import ALL, PAPER, Measured, Passes, Point, Scope, Size
from ifedicl.bench.setup import Setup
from ifedicl.errors import TooFewClientsError
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Outcome
from ifedicl.federation.events import Event, RoundDone
from ifedicl.metrics import Evaluation
from ifedicl.settings import Method

_POOLED = "pooled"


class IFedICL:
    """Our federation by a shipped settings file and the plan's rounds; ``paper`` is the paper's method."""

    scope = Scope.SPLIT

    def __init__(self, name: str, preset: str) -> None:
        self.name = name
        self.preset = preset

    def passes(self, size: Size) -> Passes:
        return _passes(size, tests=1)

    def run(self, setup: Setup) -> Measured:
        meter = Meter(setup.names)
        federated = _federated(setup, setup.clients(), setup.method, meter)
        evaluation = _tested(setup, federated.adapter, meter)
        return _measured(evaluation, federated.outcome, setup.method, meter)


class ClientAlone:
    """Each client by itself with the same settings: as many steps as it takes in the federation.

    A client whose few examples are all held out has nothing to train on and keeps the raw model.
    """

    name = "client-alone"
    scope = Scope.SPLIT
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return _passes(size, tests=size.clients)

    def run(self, setup: Setup) -> Measured:
        meter = Meter(setup.names, crosses=False)
        evaluations: dict[str, Evaluation] = {}
        for place, client in enumerate(setup.clients()):
            try:
                adapter = _federated(setup, [client], setup.method, meter, quiet=True).adapter
            except TooFewClientsError:
                adapter = runs.zero_shot_adapter(setup.backbone, setup.model, setup.task)
            evaluations[client.name] = _tested(setup, adapter, meter)
            setup.on_progress(place + 1, len(setup.names))
        rounds = setup.method.rounds.rounds
        return Measured(evaluations, meter.costs(), rounds=rounds, settings=_settings(setup.method))


class PooledI2CL:
    """One client that holds everybody's text and takes everybody's steps: the best that the coefficients can do."""

    name = "i2cl-pooled"
    scope = Scope.SEED
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return _passes(size, tests=1)

    def run(self, setup: Setup) -> Measured:
        meter = Meter([_POOLED], crosses=False)
        calibration = setup.method.calibration
        steps = calibration.model_copy(update={"local_steps": calibration.local_steps * len(setup.names)})
        method = setup.method.model_copy(update={"calibration": steps})
        clients = runs.simulate(setup.backbone, setup.task, {_POOLED: setup.pool}, seed=method.seed)
        federated = _federated(setup, clients, method, meter)
        evaluation = _tested(setup, federated.adapter, meter)
        return _measured(evaluation, federated.outcome, method, meter)


def _federated(setup: Setup, clients: Sequence[Client], method: Method, meter: Meter, *, quiet: bool = False) -> runs.Federated:
    def observe(event: Event) -> None:
        if isinstance(event, RoundDone) and not quiet:
            setup.on_progress(event.record.round, event.rounds)

    return runs.federate(
        clients, setup.model, setup.task, method, engine=meter.engine, options=runs.RunOptions(observer=observe)
    )


def _tested(setup: Setup, adapter: Adapter, meter: Meter) -> Evaluation:
    classifier = adapter.classifier(setup.backbone)
    with meter.testing(len(setup.test)):
        return classifier.evaluate(setup.test)


def _measured(evaluation: Evaluation, outcome: Outcome, method: Method, meter: Meter) -> Measured:
    zero_shot = outcome.state.zero_shot
    points = [(0, zero_shot), *((record.round, record.held_out) for record in outcome.state.history)]
    return Measured(
        {ALL: evaluation},
        meter.costs(),
        rounds=outcome.state.round,
        chosen_round=outcome.chosen_round,
        curve=tuple(Point(number, tally.accuracy, tally.loss) for number, tally in points if tally is not None),
        settings=_settings(method),
    )


def _settings(method: Method) -> dict[str, object]:
    return method.model_dump(mode="json")


def _passes(size: Size, tests: int) -> Passes:
    return Passes(size.training + size.held_out * size.evaluations + tests * size.test, size.passes)
