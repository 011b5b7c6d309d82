"""The task, settings and model that coordinator and clients agree on."""

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
    """The digest that identifies a run, the same at coordinator and clients."""
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
        """The digest that identifies the run."""
        return run_digest(self.task, self.method, self.model.fingerprint)

    @property
    def layers(self) -> range:
        """The injected layers."""
        return self.method.injection.active_layers(self.model.layers)

    @property
    def form(self) -> Form:
        """The shape of the coefficients."""
        return Form(len(self.layers), self.method.rank)

    @property
    def identity(self) -> Coefficients:
        """Coefficients of the raw model."""
        return Coefficients.identity(self.form)

    @property
    def initial(self) -> Coefficients:
        """Coefficients of a cold start (paper: λ = 0.1, β = 1)."""
        return cold_start(self.form, self.method.injection)
