"""Drives one run over an engine to its adapter, for simulations and FLARE jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ifedicl.federation.coordinator import Coordinator, Outcome, Starter
from ifedicl.federation.engine import Engine
from ifedicl.federation.events import Event, ignore
from ifedicl.federation.forgetting import Forgetting
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.secure import summing_engine
from ifedicl.metrics import Comparison
from ifedicl.settings import Coordination, Method, ModelSettings

if TYPE_CHECKING:
    from ifedicl.adapter import Adapter


@dataclass(frozen=True)
class RunOptions:
    """The options of a run that do not travel to the clients.

    Attributes:
        coordination: deadline, minimum clients and patience.
        checkpoint: its file, written after each step; None: the run cannot resume.
        resume: go on from the checkpoint, if there is one; with ``forgetting``, if that was interrupted.
        more_rounds: after a finished run, add new examples and calibrate for this many more rounds.
        observer: called with each event of the run.
        starter: gives a warm start, as :class:`Coordinator` says; None: the cold one.
        forgetting: after a finished run, what it is to forget; None: nothing.
    """

    coordination: Coordination = field(default_factory=Coordination)
    checkpoint: Path | None = None
    resume: bool = False
    more_rounds: int = 0
    observer: Callable[[Event], None] = ignore
    starter: Starter | None = None
    forgetting: Forgetting | None = None


@dataclass(frozen=True)
class Federated:
    """A finished run: its adapter, and its outcome with rounds, choice, gate and traffic."""

    adapter: Adapter
    outcome: Outcome

    @property
    def figures(self) -> dict[str, float | int | bool | None]:
        """Rounds, the chosen round's held-out loss and accuracy, and whether the gate is open; None: there is none."""
        outcome, chosen = self.outcome, self.outcome.held_out
        return {
            "rounds": outcome.state.round,
            "held_out_loss": None if chosen is None else chosen.loss,
            "held_out_accuracy": None if chosen is None else chosen.accuracy,
            "gate_open": None if outcome.gate is None else outcome.gate.is_open,
        }


def drive(
    engine: Engine,
    manifest: Manifest,
    model: ModelSettings,
    options: RunOptions,
    *,
    spent: Callable[[], Mapping[str, Any]] = dict,
) -> Federated:
    """Run all stages, or the rest of them, and make the adapter.

    Args:
        engine: reaches the clients. In a mode that shows sums only, the coordinator gets it wrapped.
        manifest: task, method and model.
        model: the source of the model, for the adapter.
        options: of the run.
        spent: called after the last round; returns the spent privacy budgets. Without it a job with noise states its promise.

    Raises:
        IfediclError: as :meth:`Coordinator.run` raises it, or a package that the privacy mode needs is not installed.
    """
    coordinator = Coordinator(
        summing_engine(engine, manifest.method),
        manifest.task,
        manifest.method,
        manifest.model,
        coordination=options.coordination,
        checkpoint_file=options.checkpoint,
        observer=options.observer,
        starter=options.starter,
    )
    outcome = coordinator.run(resume=options.resume, more_rounds=options.more_rounds, forgetting=options.forgetting)
    return Federated(adapter_of(outcome, manifest, model, len(engine.clients()), spent()), outcome)


def adapter_of(
    outcome: Outcome,
    manifest: Manifest,
    model: ModelSettings,
    clients: int,
    spent: Mapping[str, Any] = MappingProxyType({}),
) -> Adapter:
    """The adapter of a run with this number of clients. Its provenance includes ``spent``, the spent privacy budgets."""
    # Adapters import transformers, which takes seconds. A FLARE server need not wait for it before its first round.
    from ifedicl.adapter import Adapter

    return Adapter(
        task=manifest.task,
        context=outcome.context,
        readout=outcome.readout,
        coefficients=outcome.coefficients,
        model=model,
        fingerprint=manifest.model.fingerprint,
        provenance=_provenance(outcome, manifest.method, clients) | dict(spent),
    )


def _provenance(outcome: Outcome, method: Method, clients: int) -> dict[str, Any]:
    state = outcome.state
    return {
        "method": method.model_dump(mode="json"),
        "rounds": state.round,
        "chosen_round": outcome.chosen_round,
        "clients": clients,
        "examples_vectorised": sum(vectors.examples for vectors in state.client_vectors.values()),
        "dtypes": sorted(set(state.dtypes.values())),
        "gate": None if outcome.gate is None else _gate_facts(outcome.gate),
        **({"forgotten": [item.facts for item in state.forgotten]} if state.forgotten else {}),
    } | _promised_privacy(method)


def _promised_privacy(method: Method) -> dict[str, Any]:
    """What a job with noise promises; each owner's own ledger has what it spent."""
    if method.privacy is None or method.privacy.noise is None:
        return {}
    noise = method.privacy.noise
    return {"privacy": {"epsilon": noise.epsilon, "delta": noise.delta, "of": "one example of one client"}}


def _gate_facts(gate: Comparison) -> dict[str, Any]:
    adapter, raw = gate.adapter, gate.zero_shot
    figures = {"examples": adapter.examples, "accuracy": adapter.accuracy, "zero_shot_accuracy": raw.accuracy}
    return {"open": gate.is_open} | (figures if adapter.examples else {})
