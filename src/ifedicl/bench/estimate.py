"""What a plan will take, before anything is loaded: for a dry run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ifedicl.backbone.load import DTYPES
from ifedicl.bench.plan import Cell, ModelPlan, Plan

_WORKING_MEMORY = 1.15  # as load_backbone asks for
_TRAINING_COST = 3.0  # a forward and backward pass without weight gradients, in forward passes, with its smaller batches


@dataclass(frozen=True)
class Estimate:
    """Of the cells of one model.

    Attributes:
        model: its name in the plan.
        cells: how many.
        memory_gb: of the weights and what running them takes; None where the plan does not say the model's size.
        hours: at the plan's tokens per second; None where it gives none.
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
    """One for each model of a plan."""
    return [_estimate(plan, name, model) for name, model in plan.models.items()]


def _estimate(plan: Plan, name: str, model: ModelPlan) -> Estimate:
    cells = [cell for cell in plan.cells() if cell.model == name]
    memory = (
        None
        if model.parameters is None
        else model.parameters * DTYPES.get(model.dtype, torch.float32).itemsize * _WORKING_MEMORY / 1e9
    )
    speed = model.tokens_per_second
    hours = None if speed is None else sum(_tokens(plan, cell) for cell in cells) / speed / 3600
    return Estimate(name, len(cells), memory, hours)


def _tokens(plan: Plan, cell: Cell) -> float:
    """In units of a forward pass."""
    passes = plan.methods[cell.method].passes(plan.size)
    return plan.tokens * (passes.forward + _TRAINING_COST * passes.training)
