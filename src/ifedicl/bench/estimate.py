"""Memory and hours of a plan, for a dry run; nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ifedicl.backbone.devices import DTYPES
from ifedicl.bench.plan import ModelPlan, Plan

_WORKING_MEMORY = 1.15  # the margin that load_backbone requires
_TRAINING_COST = 3.0  # of a forward and backward pass without weight gradients, in forward passes; includes the smaller batches


@dataclass(frozen=True)
class Estimate:
    """Memory and time of all cells of one model.

    Attributes:
        memory_gb: of the weights and the computation; None if the plan does not give the number of parameters.
        hours: None if the plan does not give tokens per second.
    """

    model: str
    cells: int
    memory_gb: float | None
    hours: float | None

    def __str__(self) -> str:
        memory = "memory unknown (the plan gives no parameters)" if self.memory_gb is None else f"about {self.memory_gb:.1f} GB"
        time = "time unknown (the plan gives no tokens_per_second)" if self.hours is None else f"about {self.hours:.1f} hours"
        return f"{self.model}: {self.cells} cells, {memory}, {time}"


def estimates(plan: Plan) -> list[Estimate]:
    """One estimate for each model of a plan."""
    return [_estimate(plan, name, model) for name, model in plan.models.items()]


def _estimate(plan: Plan, name: str, model: ModelPlan) -> Estimate:
    cells = [cell for cell in plan.cells() if cell.model == name]
    memory = hours = None
    if model.parameters is not None:
        memory = model.parameters * DTYPES.get(model.dtype, torch.float32).itemsize * _WORKING_MEMORY / 1e9
    if model.tokens_per_second is not None:
        lengths = [plan.sets[cell.set].tokens or plan.tokens for cell in cells]
        passes = [plan.methods[cell.method].passes(plan.size(cell.set)) for cell in cells]
        tokens = sum(
            length * (item.forward + _TRAINING_COST * item.training) for length, item in zip(lengths, passes, strict=True)
        )
        hours = tokens / model.tokens_per_second / 3600
    return Estimate(name, len(cells), memory, hours)
