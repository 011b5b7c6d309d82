"""The time that a run takes on this machine, from one or two timed passes of its model over its own texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import EncodedExamples, Prompts
from ifedicl.backbone.scorers import scorer_of
from ifedicl.calibrate import ClientRound, calibrate
from ifedicl.data import Role, split_roles
from ifedicl.federation.expected_steps import ExpectedStep
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.sample_exchange import sample_context
from ifedicl.kinds.examples import AnyExample
from ifedicl.runs.client_data import RunData
from ifedicl.settings import Method, RunSettings

Clock: TypeAlias = Callable[[], float]
_SAMPLE = 64  # texts of each client
_TIMED = 16  # of them at most
_SECONDS = 5.0  # that the timed passes shall take together
_COST = 5.0  # of the timed passes, in readings
_AGAIN = 5  # times at most that a pass is timed, within two seconds: threads that start, and other work, make single ones slow


@dataclass(frozen=True)
class Pace:
    """Seconds for one example of a run.

    Attributes:
        texts: on how many it was measured.
        whole: through all layers.
        upper: through those from the lowest injected one on; the states that enter it are kept.
        step: forwards and backwards through these; 0 in a run without rounds.
    """

    texts: int
    whole: float
    upper: float
    step: float


def expected_time(
    settings: RunSettings,
    backbone: Backbone,
    data: RunData,
    steps: Sequence[ExpectedStep],
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Seconds of a run: ``one_client`` (the largest) and ``simulation`` (all clients in turn, and the test text).

    To load the model, to wait for others and to transport messages come on top.

    Args:
        settings: of the run.
        backbone: the loaded model.
        data: its labelled text.
        steps: of a client, in an undisturbed run.
        clock: gives seconds.
    """
    manifest = Manifest.of(settings.task, settings.method, backbone.shape)
    pace = measured_pace(manifest, backbone, data.clients, clock)
    seconds = [client_seconds(examples, settings.method, pace, steps) for examples in data.clients.values()]
    tests = 2 * len(data.test) * pace.whole  # by the raw model and the adapter
    return {"texts_timed": pace.texts, "one_client": max(seconds), "simulation": sum(seconds) + tests}


def client_seconds(examples: Sequence[AnyExample], method: Method, pace: Pace, steps: Sequence[ExpectedStep]) -> float:
    """Seconds of one client's work in a run with these steps."""
    holdout, calibration = method.holdout, method.calibration
    roles = split_roles(examples, selection=holdout.selection, gate=holdout.gate, seed=method.seed)
    train, selection, gate = (len(roles[role]) for role in (Role.TRAIN, Role.SELECTION, Role.GATE))
    drawn = 1.0 if method.server is None else method.server.draw
    work = {
        "vectors": train * pace.whole,
        "update": calibration.local_steps * min(calibration.batch_size, train) * pace.step,
        "gradient": drawn * train * pace.step,
        "evaluate": selection * pace.upper,
        "statistics": train * pace.upper,
        "noisy_statistics": train * pace.upper,
        "readouts": selection * pace.upper,
        "compare": 2 * gate * pace.upper,
    }
    entering = (train + selection + gate) * (pace.whole - pace.upper)
    return entering + sum(step.times * work.get(step.step, 0.0) for step in steps)


def measured_pace(
    manifest: Manifest, backbone: Backbone, clients: Mapping[str, Sequence[AnyExample]], clock: Clock = time.perf_counter
) -> Pace:
    """Time the model on a few of the texts, from short to long ones, in seconds of a clock.

    With noise each example is computed alone, and so one text is timed.
    """
    method, first_layer = manifest.method, manifest.layers.start
    scorer = scorer_of(backbone, manifest.task, first_layer=first_layer)
    pool = scorer.encoded([example for examples in clients.values() for example in examples[:_SAMPLE]])
    order = sorted(range(len(pool.labels)), key=lambda row: len(pool.prompts.tokens[row]))

    def spread(count: int) -> EncodedExamples:
        rows = [order[(2 * place + 1) * len(order) // (2 * count)] for place in range(count)]
        return EncodedExamples(
            Prompts(tuple(pool.prompts.tokens[row] for row in rows), 0), tuple(pool.labels[row] for row in rows)
        )

    def timed(work: Callable[[], object]) -> float:
        spent = list[float]()
        while len(spent) < 2 or (sum(spent) < 2 and len(spent) < _AGAIN):
            begun = clock()
            work()
            spent.append(clock() - begun)
        return min(spent)

    whole_model = scorer_of(backbone, manifest.task)
    one = spread(1)
    whole_model.reading(one)  # the first pass of a model is slower than all others
    alone = timed(lambda: whole_model.reading(one))
    most = 1 if method.promises_noise else min(_TIMED, len(order), max(1, method.calibration.batch_size))
    count = min(most, max(1, int(_SECONDS / _COST / max(alone, 1e-9))))
    some = spread(count)
    whole = timed(lambda: whole_model.reading(some))
    upper = whole
    if first_layer:
        scorer.reading(some)
        upper = timed(lambda: scorer.reading(some))
    step = 0.0
    if not method.is_one_shot:
        context = sample_context(manifest)
        calibration = method.calibration.model_copy(update={"local_steps": 1, "batch_size": count})
        one_step = method.model_copy(update={"calibration": calibration})
        turn = ClientRound("", 0, 0, max(1, method.rounds.rounds))
        step = timed(lambda: calibrate(scorer, some, context, manifest.initial, one_step, turn))
    return Pace(count, whole / count, upper / count, step / count)
