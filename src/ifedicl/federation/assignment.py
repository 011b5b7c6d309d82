"""What a run is of: the task, the settings and the model that coordinator and clients agree on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import Coefficients, Form, cold_start
from ifedicl.settings import Method
from ifedicl.task import Task


def run_digest(task: Task, method: Method, fingerprint: str) -> str:
    """Names a run: coordinator and clients make it of the same things."""
    content = [task.digest, method.model_dump(mode="json"), fingerprint]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Assignment:
    """One task, by one method, on one model."""

    task: Task
    method: Method
    model: ModelShape

    @cached_property
    def digest(self) -> str:
        """Names the run: a checkpoint belongs to one."""
        return run_digest(self.task, self.method, self.model.fingerprint)

    @property
    def layers(self) -> range:
        """The injected ones: all that vectors, basis and coefficients are of."""
        return self.method.injection.active_layers(self.model.layers)

    @property
    def form(self) -> Form:
        """Which coefficients are calibrated."""
        return Form(len(self.layers), self.method.rank)

    @property
    def identity(self) -> Coefficients:
        """Coefficients that change nothing: the raw model."""
        return Coefficients.identity(self.form)

    @property
    def initial(self) -> Coefficients:
        """Coefficients of a cold start (paper: λ = 0.1, β = 1)."""
        return cold_start(self.form, self.method.injection)
