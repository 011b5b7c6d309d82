"""Stage 2b at a client: improves the coefficients on the client's examples (paper Eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from ifedicl import seeds
from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.capture import Captures, Work
from ifedicl.backbone.hooks import Watcher, injected
from ifedicl.backbone.lock import exclusive
from ifedicl.backbone.lockstep import Lockstep, Share
from ifedicl.backbone.losses import LABELS, WORDS, Loss
from ifedicl.backbone.prompts import EncodedExamples, Tokens
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import ACTIVATION, CONTEXT, Coefficients
from ifedicl.core.schedules import SCHEDULES
from ifedicl.core.subspace import Context, ContextTensors
from ifedicl.core.transfer import to_device, to_host
from ifedicl.core.vectors import WRITES, Array32
from ifedicl.settings import CalibrationSettings, Method

_LOSSES: Mapping[str, Loss] = {"vocabulary": WORDS, "labels": LABELS}


@dataclass(frozen=True)
class ClientRound:
    """A client and a round: they seed every random draw and give the position in the schedule.

    Attributes:
        client: the client's name.
        round: number of the round, from 0.
        phase_start: the round at which the present schedule began.
        phase_rounds: the number of rounds of the present schedule.
        order: seeds the order of the client's examples; None: the method's seed does, which the coordinator knows.
    """

    client: str
    round: int
    phase_start: int
    phase_rounds: int
    order: int | None = None


@dataclass(frozen=True)
class LocalUpdate:
    """A client's coefficients after its local steps, and the mean training loss over these steps in nats."""

    coefficients: Coefficients
    loss: float


class Objective:
    """The loss of one client's examples as a function of the coefficients (paper Eq. 6)."""

    def __init__(
        self,
        scorer: BaseScorer,
        examples: EncodedExamples,
        context: ContextTensors,
        method: Method,
        lockstep: tuple[Lockstep, str] | None = None,
    ) -> None:
        """Compute nothing yet; ``context`` is on the model's device.

        In lockstep, passes are shared with other clients whose context has the same digest.
        """
        self._lockstep = lockstep
        self._scorer = scorer
        self._prompts = examples.prompts.tokens
        self._labels = examples.labels
        self._context = context
        self._loss = _LOSSES[method.calibration.loss]
        # An older adapter that an owner calibrates further may hold layers that are not injected.
        layers = method.injection.active_layers(scorer.backbone.layers)
        self._active = np.array([[layer in layers] * len(WRITES) for layer in context.layers])

    def backward(self, values: Mapping[str, Tensor], rows: Sequence[int], *, scale: float) -> Tensor:
        """Add the gradient of ``scale`` times the summed loss of some examples to the leaves of ``values``.

        Args:
            values: as :attr:`Coefficients.arrays`, on the model's device.
            rows: positions of the examples; memory decides the number of passes.
            scale: factor of the loss.

        Returns:
            ``scale`` times the summed loss, in nats: a float64 scalar on the model's device. Nothing waits for it.
        """
        total = torch.zeros((), dtype=torch.float64, device=self._scorer.backbone.device)
        for batch in self._scorer.training_batches(*self._of(rows)):
            part = [rows[index] for index in batch]
            if self._lockstep is not None:
                lockstep, digest = self._lockstep
                total = total + lockstep.backward(self._share(values, part, scale, digest))
            elif self._scorer.backbone.captures is not None:
                total = total + self._replayed_backward(values, part, scale, self._scorer.backbone.captures)
            else:
                total = total + self.pass_backward(values, part, scale=scale)
        return total

    def _replayed_backward(self, values: Mapping[str, Tensor], rows: Sequence[int], scale: float, captures: Captures) -> Tensor:
        """As :meth:`pass_backward`, of rows padded to a width that occurs often, replayed if the shapes came before."""
        scorer, backbone = self._scorer, self._scorer.backbone
        prompts, labels = self._of(rows)
        fed = self._loss.fed(scorer.words, prompts, labels, backbone.padded)
        context = {"vectors": self._context.vectors, "basis": self._context.basis}
        scorer.on_pass()
        with exclusive(backbone):
            given = {
                **scorer.pass_inputs(fed.rows, fed.width),
                **fed.tensors,
                **{name: tensor for name, tensor in context.items() if tensor is not None},
                **{name: value.detach() for name, value in values.items()},
                "scale": to_device(np.array(scale, dtype=np.float32), backbone.device),
            }
            key = ("step", self._loss, scorer.words, self._context.first_layer, self._active.tobytes())
            loss, *gradients = captures.run(key, given, self._step_of(tuple(values)))
        torch.autograd.backward(list(values.values()), gradients)
        return loss

    def _step_of(self, names: Sequence[str]) -> Work:
        """The scaled loss and its gradients as a function of tensors alone."""
        scorer, loss_of, first_layer, active = self._scorer, self._loss, self._context.first_layer, self._active

        def step(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            leaves = {name: given[name].detach().requires_grad_() for name in names}
            context = ContextTensors(given["vectors"], given.get("basis"), first_layer)
            with injected(scorer.backbone, context, leaves["scales"], active, core=leaves.get("core")):
                losses = loss_of.losses(scorer.words, scorer.states_from(given), given)
            share = losses.sum() * given["scale"]
            return share.detach(), *torch.autograd.grad(share, list(leaves.values()))

        return step

    def _of(self, rows: Sequence[int]) -> tuple[list[Tokens], list[Any]]:
        return [self._prompts[row] for row in rows], [self._labels[row] for row in rows]

    def _share(self, values: Mapping[str, Tensor], rows: Sequence[int], scale: float, digest: str) -> Share:
        prompts, labels = self._of(rows)
        return Share(self._scorer, self._loss, self._context, digest, values, self._active, prompts, labels, scale)

    def pass_backward(
        self,
        values: Mapping[str, Tensor],
        rows: Sequence[int],
        *,
        scale: float = 1.0,
        watcher: Watcher | None = None,
    ) -> Tensor:
        """As :meth:`backward` in float32, in one pass; ``watcher`` as in :func:`injected`."""
        backbone, core = self._scorer.backbone, values.get("core")
        with injected(backbone, self._context, values["scales"], self._active, core=core, watcher=watcher):
            prompts, labels = self._of(rows)
            losses = self._scorer.losses(self._loss, prompts, labels)
        share = losses.sum() * scale
        share.backward()  # type: ignore[no-untyped-call]
        return share.detach()


def calibrate(
    scorer: BaseScorer,
    examples: EncodedExamples,
    context: Context,
    coefficients: Coefficients,
    method: Method,
    turn: ClientRound,
    *,
    lockstep: Lockstep | None = None,
) -> LocalUpdate:
    """Take ``local_steps`` optimizer steps from the global ``coefficients`` on the client's training examples.

    The optimizer starts without state in each round and works on deviations from identity: weight decay pulls λ and Γ to 0 and
    β to 1. The examples of a step follow from seed, client and round alone (:func:`batches_of`). In lockstep, passes are shared
    with other clients that calibrate at the same time in threads of their own.
    """
    settings = method.calibration
    shared = None if lockstep is None else (lockstep, context.digest)
    objective = Objective(scorer, examples, context.on(scorer.backbone.device), method, shared)
    point = _Point.at(coefficients, scorer.backbone.device, method)
    # Fused: one operation, and the number of the step stays on the device.
    optimizer = AdamW(point.leaves, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    losses = list[Tensor]()
    count = len(examples.labels)
    seed = method.seed if turn.order is None else turn.order
    batches = batches_of(turn.round, settings.local_steps, count, settings.batch_size, seed, turn.client)
    for local_step, rows in enumerate(batches):
        _set_rate(optimizer, settings, turn, local_step)
        optimizer.zero_grad()
        losses.append(objective.backward(point.values, rows, scale=1 / len(rows)))
        optimizer.step()
    values = point.values
    of_losses, *arrays = to_host(torch.stack(losses), *values.values())
    return LocalUpdate(Coefficients.of(dict(zip(values, arrays, strict=True))), float(np.mean(of_losses)))


def gradient_sum(
    scorer: BaseScorer,
    examples: EncodedExamples,
    context: Context,
    coefficients: Coefficients,
    method: Method,
    rows: Sequence[int],
) -> GradientSum:
    """The gradient of the summed loss of the examples ``rows``; zeros for no examples."""
    objective = Objective(scorer, examples, context.on(scorer.backbone.device), method)
    point = _Point.at(coefficients, scorer.backbone.device, method)
    loss = objective.backward(point.values, rows, scale=1.0)
    leaves = point.deviations.values()
    of_loss, *arrays = to_host(loss, *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves))
    return GradientSum(dict(zip(point.deviations, arrays, strict=True)), len(rows), float(of_loss))


def example_gradients(
    scorer: BaseScorer,
    examples: EncodedExamples,
    context: Context,
    coefficients: Coefficients,
    method: Method,
    rows: Sequence[int],
    *,
    alone: bool = False,
) -> Iterator[tuple[list[int], dict[str, Array32]]]:
    """The gradient of each example, in as many passes as their sum needs.

    A row's gradient of λ is ``Σ_t g_t·v``, of β ``Σ_t g_t·y_t``, of Γ ``Σ_t (U g_t)(U y_t)ᵀ``, with ``g`` the gradient after
    the injection and ``y`` the write before it. These gradients stay with the owner, who clips and sums them.

    Args:
        scorer: model and task.
        examples: of the owner.
        context: global vectors and basis.
        coefficients: where the gradients are taken.
        method: loss and injected layers.
        rows: positions of the examples.
        alone: each example in a pass of its own, without padding. In a pass of several, one example changes the last bits of
            another's gradient, so a sum would change by more than the sensitivity that noise is planned for.

    Yields:
        Positions of ``B`` of the examples, and by array name their gradients, each shaped ``(B, *coefficients)``.
    """
    tensors = context.on(scorer.backbone.device)
    objective = Objective(scorer, examples, tensors, method)
    passes = [[place] for place in range(len(rows))]
    if not alone:
        tokens, labels = examples.prompts.tokens, examples.labels
        passes = scorer.training_batches([tokens[row] for row in rows], [labels[row] for row in rows])
    for batch in passes:
        part = [rows[index] for index in batch]
        point = _Point.at(coefficients, scorer.backbone.device, method)
        found = {
            name: torch.zeros(len(part), *shape, device=tensors.vectors.device)
            for name, shape in coefficients.form.shapes.items()
        }
        objective.pass_backward(point.values, part, watcher=_row_gradients(found, tensors))
        if method.fixes_scalars:
            found["scales"].zero_()  # so that they take no part of a clip
        yield part, dict(zip(found, to_host(*found.values()), strict=True))


def _row_gradients(found: Mapping[str, Tensor], context: ContextTensors) -> Watcher:
    """A watcher that fills ``found``, ``(B, ...)`` by array name. Each example has the same number of adjacent rows."""
    examples = len(found["scales"])

    def watch(layer: int, write: int, before: Tensor, gradient: Tensor) -> None:
        width = before.shape[-1]
        after = gradient.detach().reshape(examples, -1, width).float()  # (B, R * T, d)
        writes = before.reshape(examples, -1, width).float()
        found["scales"][:, layer, write, CONTEXT] = after.sum(dim=1) @ context.vectors[layer, write].to(after.device)
        found["scales"][:, layer, write, ACTIVATION] = (after * writes).sum(dim=(1, 2))
        if context.basis is not None:
            basis = context.basis[layer, write].to(after.device)
            found["core"][:, layer, write] = (after @ basis.T).transpose(1, 2) @ (writes @ basis.T)

    return watch


def drawn(keys: Sequence[str], round_number: int, method: Method) -> list[int]:
    """Positions of the examples that take part in a round. Each is drawn by its hash, whichever client holds it."""
    assert method.server is not None
    return [row for row, key in enumerate(keys) if seeds.unit(method.seed, "draw", round_number, key) < method.server.draw]


@dataclass(frozen=True)
class _Point:
    """Coefficients as differentiable tensors: ``identity`` plus ``deviations``; those that are calibrated are leaves."""

    identity: Mapping[str, Tensor]
    deviations: Mapping[str, Tensor]

    @classmethod
    def at(cls, coefficients: Coefficients, device: torch.device, method: Method) -> Self:
        """All of them on ``device``; λ and β need no gradient if the method fixes them."""

        def tensors(arrays: Mapping[str, Array32]) -> dict[str, Tensor]:
            return {name: to_device(array, device) for name, array in arrays.items()}

        identity = tensors(Coefficients.identity(coefficients.form).arrays)
        values = tensors(coefficients.arrays)
        deviations = {name: values[name] - identity[name] for name in values}
        for name, deviation in deviations.items():
            deviation.requires_grad_(name != "scales" or not method.fixes_scalars)
        return cls(identity, deviations)

    @property
    def leaves(self) -> list[Tensor]:
        """What is calibrated."""
        return [deviation for deviation in self.deviations.values() if deviation.requires_grad]

    @property
    def values(self) -> dict[str, Tensor]:
        """The coefficients as differentiable tensors."""
        return {name: self.identity[name] + deviation for name, deviation in self.deviations.items()}


def batches_of(update: int, steps: int, examples: int, batch_size: int, seed: int, client: str) -> list[list[int]]:
    """Positions of the examples in each step of a client's update number ``update``, from 0.

    No example is twice in one step, and none is twice in one update if there are enough for all its steps: an owner's rules
    count on both. Updates go through one seeded permutation after another, so no state is needed. A client with fewer examples
    than an update takes uses all of them before one is used again.
    """
    size = min(batch_size, examples)
    taken = steps * size

    def permutation(number: int) -> list[int]:
        return [int(row) for row in seeds.generator(seed, "batch", client, number).permutation(examples)]

    if in_a_pass := examples // taken:
        number, place = divmod(update, in_a_pass)
        rows = permutation(number)[place * taken : (place + 1) * taken]
    else:
        passes, rows = math.ceil(taken / examples), []
        for number in range(update * passes, (update + 1) * passes):
            begun = set(rows[len(rows) - len(rows) % size :])  # in the step that this pass completes
            rows += sorted(permutation(number), key=begun.__contains__)
    return [rows[start : start + size] for start in range(0, taken, size)]


def _set_rate(optimizer: Optimizer, settings: CalibrationSettings, turn: ClientRound, local_step: int) -> None:
    step = (turn.round - turn.phase_start) * settings.local_steps + local_step
    progress = step / (turn.phase_rounds * settings.local_steps)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * SCHEDULES[settings.schedule](progress)
