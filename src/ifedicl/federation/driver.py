"""Drives one run over an engine to its adapter. Simulations and FLARE jobs share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifedicl.federation.assignment import Assignment
from ifedicl.federation.coordinator import Coordinator, Outcome, Starter
from ifedicl.federation.engine import Engine
from ifedicl.federation.events import Event, ignore
from ifedicl.settings import Coordination, ModelSettings

if TYPE_CHECKING:
    from ifedicl.adapter import Adapter


@dataclass(frozen=True)
class RunOptions:
    """How a run is driven, beside the settings that travel to the clients.

    Attributes:
        coordination: deadline, fewest replies and patience.
        checkpoint: a file that is written after each step; None: the run cannot be resumed.
        resume: go on from the checkpoint, where there is one.
        more_rounds: after a finished run, take in the examples that were added and calibrate this many rounds more.
        observer: called with each event of the run.
        starter: gives a warm start, as :class:`Coordinator` says; None: the cold one.
    """

    coordination: Coordination = field(default_factory=Coordination)
    checkpoint: Path | None = None
    resume: bool = False
    more_rounds: int = 0
    observer: Callable[[Event], None] = ignore
    starter: Starter | None = None


@dataclass(frozen=True)
class Federated:
    """A finished federation in memory.

    Attributes:
        adapter: ready to be saved.
        outcome: rounds, choice, gate and traffic.
    """

    adapter: Adapter
    outcome: Outcome


def drive(
    engine: Engine,
    assignment: Assignment,
    model: ModelSettings,
    options: RunOptions,
    *,
    spent: Callable[[], Mapping[str, Any]] = dict,
) -> Federated:
    """Run all stages, or what is left of them, and make the adapter.

    Args:
        engine: reaches the clients, in the mode that the method names.
        assignment: what they are asked.
        model: how their model was named, for the adapter.
        options: how the run goes.
        spent: called after the last round; tells what the clients spent of their privacy budgets.

    Raises:
        IfediclError: as :meth:`Coordinator.run` raises it.
    """
    task, method, shape = assignment.task, assignment.method, assignment.model
    coordinator = Coordinator(
        engine,
        task,
        method,
        shape,
        coordination=options.coordination,
        checkpoint_file=options.checkpoint,
        observer=options.observer,
        starter=options.starter,
    )
    outcome = coordinator.run(resume=options.resume, more_rounds=options.more_rounds)
    # Adapters import transformers, which takes seconds. A FLARE server need not wait for it before its first round.
    from ifedicl.federation.results import adapter_of

    adapter = adapter_of(outcome, task, method, model, shape.fingerprint, len(engine.clients()), spent())
    return Federated(adapter, outcome)
