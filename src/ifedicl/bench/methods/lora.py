"""FedAvg-LoRA: the usual fine-tuning, as a baseline. The only module that imports ``peft``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.optim import AdamW

from ifedicl import seeds
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.losses import LABELS
from ifedicl.bench.costs import Meter
from ifedicl.bench.methods.base import ALL, PAPER, Measured, Passes, Point, Scope, Size, evaluate_scores, send_tally
from ifedicl.bench.setup import EncodedClient, Setup
from ifedicl.calibrate import batches_of
from ifedicl.errors import BackboneError
from ifedicl.federation.messages import Arrays
from ifedicl.metrics import Tally
from ifedicl.settings import Section

_RATES = (1e-3, 3e-3, 1e-2)
_RATE = "learning_rate"
_TARGETS: Mapping[str, str | None] = {"query-value": None, "all-linear": "all-linear"}
"""As peft names them; None: its usual ones of a family."""


class LoRASize(Section):
    """How large a LoRA is. Its factor is twice its rank."""

    rank: int = Field(default=8, ge=1, description="rank; 1 or more")
    on: Literal["query-value", "all-linear"] = Field(
        default="query-value", description='"query-value": the projections of queries and values; "all-linear": all of a layer'
    )

    @property
    def alpha(self) -> int:
        """The factor, before it is divided by the rank."""
        return 2 * self.rank


@dataclass(frozen=True)
class _Trained:
    weights: Arrays
    meter: Meter
    curve: tuple[Point, ...]
    rate: float

    @property
    def best(self) -> Point:
        """The point with the lowest held-out loss; the last one if no loss is finite."""
        return min(self.curve, key=lambda point: (point.loss, 0) if math.isfinite(point.loss) else (math.inf, -point.round))


class FedAvgLoRA:
    """Rank 8 on the query and value projections, unless a plan says otherwise; the server averages weights by examples.

    The held-out examples of the first cell of each model and set choose one of three learning rates. The costs do not include
    this search.
    """

    scope = Scope.SPLIT

    def __init__(self, name: str = "fedavg-lora", preset: str = PAPER, size: LoRASize | None = None) -> None:
        self.name = name
        self.preset = preset
        self.size = size or LoRASize()

    def passes(self, size: Size) -> Passes:
        return Passes(size.held_out * size.evaluations + size.test, size.passes)

    def run(self, setup: Setup) -> Measured:
        rates = (setup.choices[_RATE],) if _RATE in setup.choices else _RATES
        with lora_layers(setup.backbone, self.size) as layers:
            runs = [_train(setup, layers, rate, number, len(rates)) for number, rate in enumerate(rates)]
            best = min(runs, key=lambda run: run.best.loss if math.isfinite(run.best.loss) else math.inf)
            layers.load(best.weights)
            evaluation = evaluate_scores(setup, setup.scorer.scores, best.meter)
        steps = setup.method.calibration.model_dump(include={"local_steps", "batch_size"})
        return Measured(
            {ALL: evaluation},
            best.meter.costs(),
            rounds=setup.method.rounds.rounds,
            chosen_round=best.best.round,
            curve=best.curve,
            choices={_RATE: best.rate},
            settings={**self.size.model_dump(), "alpha": self.size.alpha, "rates": _RATES, _RATE: best.rate, **steps},
        )


class LoRALayers:
    """The trainable weights inside the model."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.parameters = dict(parameters)

    def state(self) -> Arrays:
        """A copy of the weights, float32."""
        return {name: parameter.detach().float().cpu().numpy().copy() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, state: Arrays) -> None:
        """Replace the weights."""
        for name, parameter in self.parameters.items():
            parameter.copy_(torch.from_numpy(state[name]))


@contextmanager
def lora_layers(backbone: Backbone, size: LoRASize | None = None) -> Iterator[LoRALayers]:
    """Add LoRA layers to the model within the block, of the usual size if none is given.

    Raises:
        BackboneError: ``peft`` is not installed, or does not know the projections of this model family.
    """
    size = size or LoRASize()
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise BackboneError("fedavg-lora: package peft is not installed. Run: pip install 'ifedicl[bench]'") from error
    model = backbone.model
    with torch.random.fork_rng():  # training replaces peft's random weights by seeded ones
        try:
            tuner = LoraModel(
                model,
                LoraConfig(r=size.rank, lora_alpha=size.alpha, target_modules=_TARGETS[size.on]),
                "default",
            )
        except ValueError as error:
            raise BackboneError(f"fedavg-lora: peft knows no query and value projections of {backbone.source}") from error
    try:
        parameters = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
        for parameter in parameters.values():
            parameter.data = parameter.data.float()  # float32 in every model, as the coefficients of IFed-ICL
        yield LoRALayers(parameters)
    finally:
        tuner.unload()
        model.requires_grad_(False)


def _train(setup: Setup, layers: LoRALayers, rate: float, run: int, runs: int) -> _Trained:
    rounds, meter = setup.method.rounds, Meter(setup.names)
    weights = best = _initial(layers, setup.method.seed)
    curve: list[Point] = []
    delivered = False
    for number in range(rounds.rounds):
        replies: list[Arrays] = []
        for client in setup.encoded_clients:
            received = weights if delivered else meter.down("update", {"round": number}, weights)
            if not client.train.labels:
                continue
            with meter.working("update"):
                layers.load(received)
                _local_steps(setup, layers, client, rate, number)
                trained = layers.state()
            replies.append(meter.up("update", {"examples": len(client.train.labels)}, trained))
        weights = _average(replies, [len(client.train.labels) for client in setup.encoded_clients if client.train.labels])
        completed = number + 1
        # Clients that receive the weights for an evaluation need not receive them again for the next round.
        delivered = completed == rounds.rounds or completed % rounds.evaluate_every == 0
        if delivered:
            tally = _held_out(setup, layers, weights, meter)
            curve.append(Point(completed, tally.accuracy, tally.loss))
            if curve[-1] == _Trained({}, meter, tuple(curve), rate).best:
                best = weights
        setup.on_progress(run * rounds.rounds + completed, runs * rounds.rounds)
    return _Trained(best, meter, tuple(curve), rate)


def _initial(layers: LoRALayers, seed: int) -> Arrays:
    """LoRA's initial weights: A drawn, B zero. An earlier run in the same layers has no influence."""
    state: Arrays = {}
    for name, parameter in layers.parameters.items():
        shape = tuple(parameter.shape)
        bound = 1 / math.sqrt(shape[-1])  # Kaiming's, as peft draws A
        values = seeds.generator(seed, "lora", name).uniform(-bound, bound, shape) if "lora_A" in name else np.zeros(shape)
        state[name] = values.astype(np.float32)
    return state


def _local_steps(setup: Setup, layers: LoRALayers, client: EncodedClient, rate: float, number: int) -> None:
    """The steps of one client in one round: the batches, loss and schedule of IFed-ICL."""
    settings, scorer = setup.method.calibration, setup.scorer
    tokens, labels = client.train.prompts.tokens, client.train.labels
    optimizer = AdamW(list(layers.parameters.values()), rate, weight_decay=0.0)
    steps = setup.method.rounds.rounds * settings.local_steps
    for step in range(number * settings.local_steps, (number + 1) * settings.local_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        (batch,) = batches_of(step, 1, len(labels), settings.batch_size, setup.method.seed, client.name)
        optimizer.zero_grad()
        for part in scorer.training_batches([tokens[row] for row in batch], [labels[row] for row in batch]):
            rows = [batch[position] for position in part]
            losses = scorer.losses(LABELS, [tokens[row] for row in rows], [labels[row] for row in rows])
            (losses.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _average(replies: Sequence[Arrays], examples: Sequence[int]) -> Arrays:
    """Mean of the weights by examples; summed in float64, returned in float32."""
    averages: Arrays = {}
    for name in replies[0]:
        total: Any = sum(count * reply[name].astype(np.float64) for count, reply in zip(examples, replies, strict=True))
        averages[name] = (total / sum(examples)).astype(np.float32)
    return averages


def _held_out(setup: Setup, layers: LoRALayers, weights: Arrays, meter: Meter) -> Tally:
    total = Tally()
    for client in setup.encoded_clients:
        received = meter.down("evaluate", {}, weights)
        if not client.selection.labels:
            continue
        with meter.working("evaluate"):
            layers.load(received)
            tally = setup.task.tally(setup.scorer.reading(client.selection).log_probabilities(None), client.selection.labels)
        send_tally(tally, meter)
        total += tally
    return total
