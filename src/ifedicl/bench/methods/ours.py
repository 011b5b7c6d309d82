"""IFed-ICL, and its vectors and coefficients without a federation: for one client alone, and on pooled text (I2CL)."""

from __future__ import annotations

from collections.abc import Sequence

from ifedicl import runs
from ifedicl.bench.costs import Meter
from ifedicl.bench.methods.base import ALL, PAPER, Measured, Passes, Point, Scope, Size, evaluate_adapter
from ifedicl.bench.setup import Setup
from ifedicl.errors import TooFewClientsError
from ifedicl.federation.client import Client
from ifedicl.federation.events import Event, RoundDone
from ifedicl.kinds.examples import AnyEvaluation
from ifedicl.settings import Method, load_preset

_POOLED = "pooled"


class IFedICL:
    """The federation of ifedicl with a preset and the plan's rounds; the preset ``paper`` is the paper's method."""

    scope = Scope.SPLIT

    def __init__(self, name: str, preset: str) -> None:
        self.name = name
        self.preset = preset

    def passes(self, size: Size) -> Passes:
        is_one_shot = load_preset(self.preset).is_one_shot
        return Passes(size.training + size.held_out + size.test) if is_one_shot else _passes(size)

    def run(self, setup: Setup) -> Measured:
        return _measured(setup, setup.clients(), setup.method, Meter(setup.names))


class ClientAlone:
    """Each client by itself with the same settings, and as many steps as in the federation.

    A client whose examples are all held out has nothing to train on and keeps the frozen model.
    """

    name = "client-alone"
    scope = Scope.SPLIT
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return _passes(size, tests=size.clients)

    def run(self, setup: Setup) -> Measured:
        meter = Meter(setup.names, counts_bytes=False)
        evaluations: dict[str, AnyEvaluation] = {}
        for done, client in enumerate(setup.clients(), start=1):
            try:
                adapter = runs.federate([client], setup.model, setup.task, setup.method, engine=meter.engine).adapter
            except TooFewClientsError:
                adapter = runs.zero_shot_adapter(setup.backbone, setup.model, setup.task)
            evaluations[client.name] = evaluate_adapter(setup, adapter, meter)
            setup.on_progress(done, len(setup.names))
        settings = setup.method.model_dump(mode="json")
        return Measured(evaluations, meter.costs(), rounds=setup.method.rounds.rounds, settings=settings)


class PooledI2CL:
    """One client that holds all text and takes the steps of all clients: the best result that the coefficients allow."""

    name = "i2cl-pooled"
    scope = Scope.SEED
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return _passes(size)

    def run(self, setup: Setup) -> Measured:
        calibration = setup.method.calibration
        steps = calibration.model_copy(update={"local_steps": calibration.local_steps * len(setup.names)})
        method = setup.method.model_copy(update={"calibration": steps})
        clients = runs.simulate(setup.backbone, setup.task, {_POOLED: setup.pool}, seed=method.seed)
        return _measured(setup, clients, method, Meter([_POOLED], counts_bytes=False))


def _measured(setup: Setup, clients: Sequence[Client], method: Method, meter: Meter) -> Measured:
    def observe(event: Event) -> None:
        if isinstance(event, RoundDone):
            setup.on_progress(event.record.round, event.rounds)

    options = runs.RunOptions(observer=observe)
    federated = runs.federate(clients, setup.model, setup.task, method, engine=meter.engine, options=options)
    evaluation = evaluate_adapter(setup, federated.adapter, meter)
    state = federated.outcome.state
    points = [(0, state.zero_shot), *((record.round, record.held_out) for record in state.history)]
    return Measured(
        {ALL: evaluation},
        meter.costs(),
        rounds=state.round,
        chosen_round=federated.outcome.chosen_round,
        curve=tuple(Point(number, tally.accuracy, tally.loss) for number, tally in points if tally is not None),
        settings=method.model_dump(mode="json"),
    )


def _passes(size: Size, tests: int = 1) -> Passes:
    return Passes(size.training + size.held_out * size.evaluations + tests * size.test, size.passes)
