"""Stage 2b at a client: examples, vectors and coefficients to better coefficients (paper Eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ifedicl import seeds
from ifedicl.backbone.encoding import Prompts, Tokens
from ifedicl.backbone.hooks import Noise, injected
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.coefficients import Coefficients, active_writes
from ifedicl.core.vectors import Array32
from ifedicl.settings import CalibrationSettings, Method

_OPTIMIZERS: Mapping[str, Callable[[Tensor, CalibrationSettings], Optimizer]] = {
    "adamw": lambda values, settings: AdamW([values], settings.learning_rate, weight_decay=settings.weight_decay),
    "adam": lambda values, settings: Adam([values], settings.learning_rate, weight_decay=settings.weight_decay),
    "sgd": lambda values, settings: SGD([values], settings.learning_rate, weight_decay=settings.weight_decay),
}
_SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "constant": lambda _progress: 1.0,
}
_LOSSES: Mapping[str, Callable[[Scorer, Sequence[Tokens], Sequence[int]], Tensor]] = {
    "vocabulary": Scorer.word_losses,
    "labels": Scorer.label_losses,
}


@dataclass(frozen=True)
class Turn:
    """Whose turn it is, and when: names every random draw and the place in the schedule.

    Attributes:
        client: the client's name.
        round: 0 for the first round of all.
        phase_start: the round at which the present schedule began.
        phase_rounds: how many rounds the present schedule has.
    """

    client: str
    round: int
    phase_start: int
    phase_rounds: int


@dataclass(frozen=True)
class LocalUpdate:
    """What a client's turn gave.

    Attributes:
        coefficients: after its local steps.
        loss: mean training loss over its local steps, in nats.
    """

    coefficients: Coefficients
    loss: float


def calibrate(
    scorer: Scorer,
    prompts: Prompts,
    labels: Sequence[int],
    vectors: Array32,
    coefficients: Coefficients,
    method: Method,
    turn: Turn,
) -> LocalUpdate:
    """Take ``local_steps`` optimizer steps on the client's own examples.

    The optimizer starts afresh each round and works on ``(λ, β - 1)``, so weight decay pulls β to 1. Which examples a step
    sees derives from seed, client and step alone, and walks through all of them before any comes again.

    Args:
        scorer: model and task.
        prompts: the client's ``N`` encoded training prompts.
        labels: their labels' positions in the task.
        vectors: ``(L, 2, d)`` the global context vectors.
        coefficients: the global coefficients of this round.
        method: the run's settings.
        turn: client and round.
    """
    settings, backbone = method.calibration, scorer.backbone
    identity = torch.from_numpy(Coefficients.identity(backbone.layers).scales)
    deviation = (torch.from_numpy(coefficients.scales) - identity).requires_grad_()
    active = active_writes(backbone.layers, method.injection.active_layers(backbone.layers), method.injection.writes)
    optimizer = _OPTIMIZERS[settings.optimizer](deviation, settings)
    on_device = torch.from_numpy(vectors).to(backbone.device)
    losses = []
    for local_step in range(settings.local_steps):
        _set_rate(optimizer, settings, turn, local_step)
        step = turn.round * settings.local_steps + local_step
        batch = batch_of(step, len(labels), settings.batch_size, method.seed, turn.client)
        noise = _noise(scorer, method, turn, step)
        optimizer.zero_grad()
        loss = 0.0
        for part in scorer.batches([prompts.tokens[position] for position in batch]):
            rows = [batch[place] for place in part]
            with injected(backbone, on_device, identity + deviation, active, noise=noise):
                row_losses = _LOSSES[settings.loss](
                    scorer, [prompts.tokens[row] for row in rows], [labels[row] for row in rows]
                )
            share = row_losses.sum() / len(batch)
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.item()
        optimizer.step()
        losses.append(loss)
    return LocalUpdate(Coefficients((identity + deviation.detach()).numpy()), float(np.mean(losses)))


def batch_of(step: int, examples: int, batch_size: int, seed: int, client: str) -> list[int]:
    """Positions of the examples in a client's step number ``step``, counted over the whole run.

    Steps walk through one seeded permutation after another; no state is needed to know where they are.
    """
    size = min(batch_size, examples)
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: seeds.generator(seed, "batch", client, epoch).permutation(examples) for epoch in {p // examples for p in places}
    }
    return [int(orders[place // examples][place % examples]) for place in places]


def _set_rate(optimizer: Optimizer, settings: CalibrationSettings, turn: Turn, local_step: int) -> None:
    step = (turn.round - turn.phase_start) * settings.local_steps + local_step
    progress = step / (turn.phase_rounds * settings.local_steps)
    warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * warmup * _SCHEDULES[settings.schedule](progress)


def _noise(scorer: Scorer, method: Method, turn: Turn, step: int) -> Noise | None:
    if method.calibration.noise == 0:
        return None
    draws = torch.Generator(device=scorer.backbone.device)
    draws.manual_seed(seeds.derive(method.seed, "noise", turn.client, step))
    return Noise(method.calibration.noise, draws)
