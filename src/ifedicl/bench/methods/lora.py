"""FedAvg-LoRA: what users would fine-tune with. The only place that knows ``peft``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim import AdamW

from ifedicl import seeds
from ifedicl.backbone.load import Backbone
from ifedicl.bench.costs import Meter
from ifedicl.bench.methods.base import ALL, PAPER, Measured, Passes, Point, Scope, Size
from ifedicl.bench.setup import Hand, Setup
from ifedicl.calibrate import batch_of
from ifedicl.core.vectors import Array32
from ifedicl.errors import BackboneError
from ifedicl.federation.messages import Arrays
from ifedicl.metrics import Evaluation, Tally

_RANK, _ALPHA = 8, 16
_RATES = (1e-3, 3e-3, 1e-2)
_RATE = "learning_rate"


@dataclass(frozen=True)
class _Trained:
    weights: Arrays
    meter: Meter
    curve: tuple[Point, ...]
    rate: float

    @property
    def best(self) -> Point:
        """By held-out loss; the last round where none has one."""
        return min(self.curve, key=lambda point: (point.loss, 0) if math.isfinite(point.loss) else (math.inf, -point.round))


class FedAvgLoRA:
    """Rank 8 on the query and value projections; weights averaged by examples.

    The learning rate is the best of three on the held-out client examples of the first cell of each model and set. The search
    is not counted in its costs.
    """

    name = "fedavg-lora"
    scope = Scope.SPLIT
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return Passes(size.held_out * size.evaluations + size.test, size.passes)

    def run(self, setup: Setup) -> Measured:
        rates = (setup.choices[_RATE],) if _RATE in setup.choices else _RATES
        with lora_layers(setup.backbone) as layers:
            runs = [_train(setup, layers, rate, place, len(rates)) for place, rate in enumerate(rates)]
            best = min(runs, key=lambda run: run.best.loss if math.isfinite(run.best.loss) else math.inf)
            layers.load(best.weights)
            evaluation = _tested(setup, best.meter)
        calibration = setup.method.calibration
        settings = {
            "rank": _RANK,
            "alpha": _ALPHA,
            "rates": _RATES,
            _RATE: best.rate,
            "local_steps": calibration.local_steps,
            "batch_size": calibration.batch_size,
        }
        return Measured(
            {ALL: evaluation},
            best.meter.costs(),
            rounds=setup.method.rounds.rounds,
            chosen_round=best.best.round,
            curve=best.curve,
            choices={_RATE: best.rate},
            settings=settings,
        )


class LoRALayers:
    """The trainable weights that stand in the model."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.parameters = dict(parameters)

    def state(self) -> Arrays:
        """A copy, float32."""
        return {name: parameter.detach().float().cpu().numpy().copy() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, state: Arrays) -> None:
        """Put these weights in place."""
        for name, parameter in self.parameters.items():
            parameter.copy_(torch.from_numpy(state[name]))


@contextmanager
def lora_layers(backbone: Backbone) -> Iterator[LoRALayers]:
    """Put LoRA layers into the model; gone when the block ends.

    Raises:
        BackboneError: ``peft`` is not installed, or does not know where this family has its query and value projections.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise BackboneError("fedavg-lora needs one more package: pip install 'ifedicl[bench]'") from error
    model = backbone.model
    with torch.random.fork_rng():  # what peft draws is replaced by seeded draws before training
        try:
            tuner = LoraModel(model, LoraConfig(r=_RANK, lora_alpha=_ALPHA), "default")
        except ValueError as error:
            raise BackboneError(f"fedavg-lora: peft knows no query and value projections of {backbone.source}") from error
    try:
        parameters = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
        for parameter in parameters.values():
            parameter.data = parameter.data.float()  # whatever the model computes in, as our own coefficients
        yield LoRALayers(parameters)
    finally:
        tuner.unload()
        model.requires_grad_(False)


def _train(setup: Setup, layers: LoRALayers, rate: float, place: int, runs: int) -> _Trained:
    rounds, meter = setup.method.rounds, Meter(setup.names)
    weights = best = _initial(layers, setup.method.seed)
    curve: list[Point] = []
    delivered = False
    for number in range(rounds.rounds):
        replies: list[Arrays] = []
        for hand in setup.hands:
            received = weights if delivered else meter.down("update", {"round": number}, weights)
            if not hand.train.labels:
                continue
            with meter.working("update"):
                layers.load(received)
                _local_steps(setup, layers, hand, rate, number)
                own = layers.state()
            replies.append(meter.up("update", {"examples": len(hand.train.labels)}, own))
        weights = _average(replies, [len(hand.train.labels) for hand in setup.hands if hand.train.labels])
        completed = number + 1
        # What is sent to be evaluated need not be sent again for the next round.
        delivered = completed == rounds.rounds or completed % rounds.evaluate_every == 0
        if delivered:
            tally = _held_out(setup, layers, weights, meter)
            curve.append(Point(completed, tally.accuracy, tally.loss))
            if curve[-1] == _Trained({}, meter, tuple(curve), rate).best:
                best = weights
        setup.on_progress(place * rounds.rounds + completed, runs * rounds.rounds)
    return _Trained(best, meter, tuple(curve), rate)


def _initial(layers: LoRALayers, seed: int) -> Arrays:
    """As LoRA starts: A drawn, B zero. Drawn anew, since a run before may have trained them."""
    state: Arrays = {}
    for name, parameter in layers.parameters.items():
        draw = seeds.generator(seed, "lora", name)
        bound = 1 / math.sqrt(parameter.shape[-1])  # Kaiming's, as peft draws A
        values = draw.uniform(-bound, bound, tuple(parameter.shape)) if "lora_A" in name else np.zeros(tuple(parameter.shape))
        state[name] = values.astype(np.float32)
    return state


def _local_steps(setup: Setup, layers: LoRALayers, hand: Hand, rate: float, number: int) -> None:
    """As our own clients step: the same batches, loss and schedule."""
    settings, scorer = setup.method.calibration, setup.scorer
    optimizer = AdamW(list(layers.parameters.values()), rate, weight_decay=0.0)
    steps = setup.method.rounds.rounds * settings.local_steps
    for local_step in range(settings.local_steps):
        step = number * settings.local_steps + local_step
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        batch = batch_of(step, len(hand.train.labels), settings.batch_size, setup.method.seed, hand.name)
        optimizer.zero_grad()
        for part in scorer.batches([hand.train.prompts.tokens[row] for row in batch]):
            rows = [batch[position] for position in part]
            losses = scorer.label_losses([hand.train.prompts.tokens[row] for row in rows], [hand.train.labels[r] for r in rows])
            (losses.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _average(replies: Sequence[Arrays], examples: Sequence[int]) -> Arrays:
    total = sum(examples)
    return {name: _weighted([reply[name] for reply in replies], examples, total) for name in replies[0]}


def _weighted(arrays: Sequence[Any], weights: Sequence[int], total: int) -> Array32:
    mean: Array32 = sum(weight * array.astype(np.float64) for weight, array in zip(weights, arrays, strict=True)) / total
    return mean.astype(np.float32)


def _held_out(setup: Setup, layers: LoRALayers, weights: Arrays, meter: Meter) -> Tally:
    total = Tally()
    for hand in setup.hands:
        received = meter.down("evaluate", {}, weights)
        if not hand.selection.labels:
            continue
        with meter.working("evaluate"):
            layers.load(received)
            tally = Tally.of(setup.scorer.log_probabilities(hand.selection.prompts), hand.selection.labels)
        counts = {"examples": tally.examples, "correct": tally.correct, "loss_sum": tally.loss_sum}
        meter.up("evaluate", counts, {})
        total += tally
    return total


def _tested(setup: Setup, meter: Meter) -> Evaluation:
    part = setup.scorer.encoded(setup.test)
    with meter.testing(len(setup.test)):
        logs = setup.scorer.log_probabilities(part.prompts)
    return Evaluation.of(setup.task.labels, logs, part.labels)
