"""Clients of one process, over one shared model, and federations of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ifedicl import seeds
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import WRITES
from ifedicl.data import Example
from ifedicl.federation.assignment import Assignment
from ifedicl.federation.client import Client
from ifedicl.federation.driver import Federated, RunOptions, drive
from ifedicl.federation.engine import Engine
from ifedicl.federation.handler import Endpoint
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.secure import summing_engine
from ifedicl.owner.endpoint import simulated_endpoints, spent_privacy
from ifedicl.runs.client_data import check_classes
from ifedicl.settings import Method, ModelSettings
from ifedicl.task import Task

_USUAL = RunOptions()


def simulate(backbone: Backbone, task: Task, examples: Mapping[str, Sequence[Example]], *, seed: int = 0) -> tuple[Client, ...]:
    """Clients in this process, all over one shared model. They may take part in any number of federations.

    Args:
        backbone: the frozen model, loaded.
        task: what they will be asked.
        examples: each one's labelled text, in the order in which their replies are aggregated.
        seed: of the run.

    Raises:
        DataError: all clients together hold one class only or nothing, or a label that the task does not have.
    """
    check_classes(task, examples)
    return tuple(
        Client(name, own, backbone, secret=seeds.derive(seed, "secret", name).to_bytes(8, "little"))
        for name, own in examples.items()
    )


def federate(
    clients: Sequence[Client],
    model: ModelSettings,
    task: Task,
    method: Method,
    *,
    engine: Callable[[Sequence[Endpoint]], Engine] = LocalEngine,
    ledgers: Path | None = None,
    public: Sequence[Example] = (),
    options: RunOptions = _USUAL,
) -> Federated:
    """Run the federation of simulated clients.

    Args:
        clients: one or more, in the order in which their replies are aggregated.
        model: how their model was named, for the adapter.
        task: what is asked.
        method: the settings.
        engine: what carries the messages.
        ledgers: a folder for each client's ledger of what left it; None: none is kept. A privacy budget counts what the ledgers
            say of earlier tries of this run.
        public: texts that are no client's; where noise is promised, vectors come from them.
        options: deadline, checkpoint, observer and more.

    Raises:
        DataError: a text has no tokens.
        TaskError: the model cannot score the task.
        FederationError: too few clients gave a usable reply.
        StorageError: the checkpoint cannot be written.
    """
    assignment = Assignment(task, method, clients[0].backbone.shape)
    endpoints = simulated_endpoints(clients, assignment, ledgers, public)
    for endpoint in endpoints:
        endpoint.client.prepare(task, method)
    carrier = summing_engine(engine(endpoints), method)
    return drive(carrier, assignment, model, options, spent=lambda: spent_privacy(endpoints, method))


def zero_shot_adapter(backbone: Backbone, model: ModelSettings, task: Task) -> Adapter:
    """The raw model in the form of an adapter that changes nothing."""
    return Adapter(
        task=task,
        context=Context(np.zeros((backbone.layers, len(WRITES), backbone.width), dtype=np.float32)),
        coefficients=Coefficients.identity(Form(backbone.layers)),
        model=model,
        fingerprint=backbone.fingerprint,
    )
