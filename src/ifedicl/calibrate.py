"""Stage 2b at a client: examples, vectors and coefficients to better coefficients (paper Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from ifedicl import seeds
from ifedicl.backbone.encoding import EncodedExamples, Tokens
from ifedicl.backbone.hooks import Watcher, injected
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import ACTIVATION, CONTEXT, Coefficients
from ifedicl.core.schedules import SCHEDULES
from ifedicl.core.subspace import Context, ContextTensors
from ifedicl.core.vectors import WRITES, Array32
from ifedicl.settings import CalibrationSettings, Method

_LOSSES: Mapping[str, Callable[[Scorer, Sequence[Tokens], Sequence[int]], Tensor]] = {
    "vocabulary": Scorer.word_losses,
    "labels": Scorer.label_losses,
}


@dataclass(frozen=True)
class ClientRound:
    """One client's part in one round: it seeds every random draw and gives the place in the schedule.

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
    """What a client's local steps gave.

    Attributes:
        coefficients: after its local steps.
        loss: mean training loss over its local steps, in nats.
    """

    coefficients: Coefficients
    loss: float


class Objective:
    """The loss of one client's examples as a function of the coefficients (paper Eq. 6)."""

    def __init__(self, scorer: Scorer, examples: EncodedExamples, context: ContextTensors, method: Method) -> None:
        """Compute nothing yet.

        Args:
            scorer: model and task.
            examples: the client's ``N`` training examples.
            context: global vectors and basis, on the model's device.
            method: the run's settings.
        """
        self._scorer = scorer
        self._prompts = examples.prompts.tokens
        self._labels = examples.labels
        self._context = context
        self._losses = _LOSSES[method.calibration.loss]
        # An adapter from before, which an owner takes further, may hold layers that are not injected.
        layers = method.injection.active_layers(scorer.backbone.layers)
        self._active = np.array([[layer in layers] * len(WRITES) for layer in context.layers])

    def backward(self, values: Mapping[str, Tensor], rows: Sequence[int], *, scale: float) -> float:
        """Add the gradient of ``scale`` times the summed loss of some examples to the tensors behind ``values``.

        Args:
            values: as :attr:`Coefficients.arrays`: ``scales`` on the CPU, the others on the model's device.
            rows: positions of the examples; they run in as many passes as memory asks for.
            scale: of the loss.

        Returns:
            ``scale`` times the summed loss, in nats.
        """
        total = 0.0
        for part in self._scorer.batches([self._prompts[row] for row in rows]):
            total += self.pass_backward(values, [rows[place] for place in part], scale=scale)
        return total

    def pass_backward(
        self,
        values: Mapping[str, Tensor],
        rows: Sequence[int],
        *,
        scale: float = 1.0,
        watcher: Watcher | None = None,
    ) -> float:
        """As :meth:`backward`, in one pass; ``watcher`` as in :func:`injected`."""
        with injected(
            self._scorer.backbone,
            self._context,
            values["scales"],
            self._active,
            core=values.get("core"),
            watcher=watcher,
        ):
            losses = self._losses(self._scorer, [self._prompts[row] for row in rows], [self._labels[row] for row in rows])
        share = losses.sum() * scale
        share.backward()  # type: ignore[no-untyped-call]
        return float(share.item())


def calibrate(
    scorer: Scorer, examples: EncodedExamples, context: Context, coefficients: Coefficients, method: Method, turn: ClientRound
) -> LocalUpdate:
    """Take ``local_steps`` optimizer steps on the client's own examples.

    The optimizer starts afresh each round and works on what differs from identity: weight decay pulls λ and Γ to 0 and β to 1.
    Which examples a step sees derives from seed, client and step alone, and walks through all of them before any comes again.

    Args:
        scorer: model and task.
        examples: the client's ``N`` training examples.
        context: global vectors and basis.
        coefficients: the global coefficients of this round.
        method: the run's settings.
        turn: client and round.
    """
    settings = method.calibration
    objective = Objective(scorer, examples, context.on(scorer.backbone.device), method)
    point = _Point.at(coefficients, scorer.backbone.device)
    optimizer = AdamW(list(point.deviations.values()), settings.learning_rate, weight_decay=settings.weight_decay)
    losses = []
    for local_step in range(settings.local_steps):
        _set_rate(optimizer, settings, turn, local_step)
        step = turn.round * settings.local_steps + local_step
        rows = batch_of(step, len(examples.labels), settings.batch_size, method.seed, turn.client)
        optimizer.zero_grad()
        losses.append(objective.backward(point.values, rows, scale=1 / len(rows)))
        optimizer.step()
    return LocalUpdate(point.coefficients, float(np.mean(losses)))


def gradient_sum(
    scorer: Scorer, examples: EncodedExamples, context: Context, coefficients: Coefficients, method: Method, rows: Sequence[int]
) -> GradientSum:
    """The gradient of the summed loss of the examples ``rows``; zeros of no examples.

    Other arguments: as :func:`calibrate`.
    """
    objective = Objective(scorer, examples, context.on(scorer.backbone.device), method)
    point = _Point.at(coefficients, scorer.backbone.device)
    loss = objective.backward(point.values, rows, scale=1.0) if rows else 0.0
    leaves = point.deviations.items()
    arrays = {
        name: torch.zeros_like(leaf).cpu().numpy() if leaf.grad is None else leaf.grad.cpu().numpy() for name, leaf in leaves
    }
    return GradientSum(arrays, len(rows), loss)


def example_gradients(
    scorer: Scorer, examples: EncodedExamples, context: Context, coefficients: Coefficients, method: Method, rows: Sequence[int]
) -> Iterator[tuple[list[int], dict[str, Array32]]]:
    """Each example's own gradient, in the passes that the sum of them takes: the injection tells them apart.

    A row's gradient of λ is ``Σ_t g_t·v``, of β ``Σ_t g_t·y_t``, of Γ ``Σ_t (U g_t)(U y_t)ᵀ``, with ``g`` the gradient after
    the injection and ``y`` the write before it. It stays with its owner, who clips and sums it.

    Args: as :func:`gradient_sum`.

    Yields:
        Positions of ``B`` of the examples, and by array name their gradients, each shaped ``(B, *coefficients)``.
    """
    tensors = context.on(scorer.backbone.device)
    objective = Objective(scorer, examples, tensors, method)
    for part in scorer.batches([examples.prompts.tokens[row] for row in rows]):
        own = [rows[place] for place in part]
        point = _Point.at(coefficients, scorer.backbone.device)
        found = {
            name: torch.zeros(len(own), *shape, device=tensors.vectors.device)
            for name, shape in coefficients.form.shapes.items()
        }
        objective.pass_backward(point.values, own, watcher=_row_gradients(found, tensors))
        yield own, {name: array.cpu().numpy() for name, array in found.items()}


def _row_gradients(found: Mapping[str, Tensor], context: ContextTensors) -> Watcher:
    """Fills ``found``: array name to ``(B, ...)``. A pass holds the same number of rows for each example, one after another."""
    examples = len(found["scales"])

    def watch(layer: int, write: int, before: Tensor, gradient: Tensor) -> None:
        width = before.shape[-1]
        after = gradient.detach().reshape(examples, -1, width).float()  # (B, R * T, d)
        own = before.reshape(examples, -1, width).float()
        found["scales"][:, layer, write, CONTEXT] = after.sum(dim=1) @ context.vectors[layer, write]
        found["scales"][:, layer, write, ACTIVATION] = (after * own).sum(dim=(1, 2))
        if context.basis is not None:
            basis = context.basis[layer, write]
            found["core"][:, layer, write] = (after @ basis.T).transpose(1, 2) @ (own @ basis.T)

    return watch


def drawn(keys: Sequence[str], round_number: int, method: Method) -> list[int]:
    """Positions of the examples that take part in a round: each by its own hash, so it does not matter who holds it."""
    assert method.server is not None
    return [row for row, key in enumerate(keys) if seeds.unit(method.seed, "draw", round_number, key) < method.server.draw]


@dataclass(frozen=True)
class _Point:
    """Coefficients as tensors that gradients flow into, centred at identity.

    Attributes:
        identity: where nothing is changed.
        deviations: from there; the leaves.
    """

    identity: Mapping[str, Tensor]
    deviations: Mapping[str, Tensor]

    @classmethod
    def at(cls, coefficients: Coefficients, device: torch.device) -> Self:
        """A λ or β is read by the CPU, a matrix where the model runs."""

        def tensors(arrays: Mapping[str, Array32]) -> dict[str, Tensor]:
            return {name: torch.from_numpy(array).to("cpu" if name == "scales" else device) for name, array in arrays.items()}

        identity = tensors(Coefficients.identity(coefficients.form).arrays)
        values = tensors(coefficients.arrays)
        return cls(identity, {name: (values[name] - identity[name]).requires_grad_() for name in values})

    @property
    def values(self) -> dict[str, Tensor]:
        """What the model is changed by; differentiable."""
        return {name: self.identity[name] + deviation for name, deviation in self.deviations.items()}

    @property
    def coefficients(self) -> Coefficients:
        """As they stand."""
        return Coefficients.of({name: value.detach().cpu().numpy() for name, value in self.values.items()})


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


def _set_rate(optimizer: Optimizer, settings: CalibrationSettings, turn: ClientRound, local_step: int) -> None:
    step = (turn.round - turn.phase_start) * settings.local_steps + local_step
    progress = step / (turn.phase_rounds * settings.local_steps)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * SCHEDULES[settings.schedule](progress)
