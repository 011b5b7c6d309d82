"""Clients in one process that share one model, and federations of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ifedicl import seeds
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lockstep import Lockstep
from ifedicl.backbone.scorers import Scorers
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import WRITES
from ifedicl.federation.client import Client
from ifedicl.federation.driver import Federated, RunOptions, drive
from ifedicl.federation.engine import Engine
from ifedicl.federation.handler import Endpoint
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.public_text import PublicText
from ifedicl.federation.reference_text import REFERENCE_TEXTS
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyExample
from ifedicl.owner.endpoint import simulated_endpoints, spent_privacy
from ifedicl.runs.client_data import check_names
from ifedicl.settings import Method, ModelSettings

_DEFAULTS = RunOptions()


def simulate(
    backbone: Backbone,
    task: AnyTask,
    examples: Mapping[str, Sequence[AnyExample]],
    *,
    seed: int = 0,
    split_keys: Mapping[str, bytes] = MappingProxyType({}),
) -> tuple[Client, ...]:
    """Clients in this process that share one model. They may take part in any number of federations.

    Args:
        backbone: the frozen model.
        task: the task whose labels the examples have.
        examples: each client's, in the order in which the clients' replies are aggregated.
        seed: of the run.
        split_keys: by client, its owner's key, which divides its examples into roles; by default the method's seed does.

    Raises:
        InputError: a client's name cannot be seen.
        DataError: there is no example, only one class, or a label that the task does not have.
    """
    check_names(examples)
    task.check_all([example for rows in examples.values() for example in rows])
    scorers, reference = Scorers(backbone), PublicText(REFERENCE_TEXTS)
    return tuple(
        Client(
            name,
            rows,
            backbone,
            secret=seeds.derive(seed, "secret", name).to_bytes(8, "little"),
            split_key=split_keys.get(name, b""),
            scorers=scorers,
            reference=reference,
        )
        for name, rows in examples.items()
    )


def federate(
    clients: Sequence[Client],
    model: ModelSettings,
    task: AnyTask,
    method: Method,
    *,
    engine: Callable[[Sequence[Endpoint]], Engine] | None = None,
    ledgers: Path | None = None,
    public: Sequence[str] = (),
    options: RunOptions = _DEFAULTS,
) -> Federated:
    """Run the federation of simulated clients.

    Args:
        clients: one or more, in the order in which their replies are aggregated.
        model: source and settings of the clients' model, for the adapter.
        task: the task to learn.
        method: the settings of the method.
        engine: carries the messages; None: a local one, with as many clients in a pass as the options say.
        ledgers: a folder for the clients' ledgers of their uploads; None: no ledger. A privacy budget includes the uploads of
            earlier attempts of this run.
        public: texts of no client; in private mode vectors come from them, and the noise is scaled on them.
        options: deadline, checkpoint, observer and more.

    Raises:
        DataError: a text has no tokens.
        TaskError: the model cannot score the task.
        FederationError: too few clients gave a usable reply.
        StorageError: the checkpoint cannot be written.
    """
    manifest = Manifest.of(task, method, clients[0].backbone.shape)
    endpoints = simulated_endpoints(clients, manifest, ledgers, public)
    most = options.coordination.clients_in_a_pass
    lockstep = Lockstep() if most > 1 and engine is None else None
    for endpoint in endpoints:
        endpoint.client.prepare(manifest)
        endpoint.client.lockstep = lockstep
    build = engine or partial(LocalEngine, lockstep=lockstep, most=most)
    return drive(build(endpoints), manifest, model, options, spent=lambda: spent_privacy(endpoints, manifest))


def zero_shot_adapter(backbone: Backbone, model: ModelSettings, task: AnyTask) -> Adapter:
    """An adapter that changes nothing: the raw model."""
    return Adapter(
        task=task,
        context=Context(np.zeros((backbone.layers, len(WRITES), backbone.width), dtype=np.float32)),
        coefficients=Coefficients.identity(Form(backbone.layers)),
        model=model,
        fingerprint=backbone.fingerprint,
    )
