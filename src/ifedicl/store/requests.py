"""Answers a task request: look up, warm start, calibrate, store (the paper's application optimisation)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ifedicl.adapter import Adapter
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.core.warm_start import Start, warm_start
from ifedicl.federation.coordinator import Outcome, Starter
from ifedicl.settings import Method
from ifedicl.store.lease import leased
from ifedicl.store.protocol import Store
from ifedicl.store.records import Entry, Neighbour, TaskKey
from ifedicl.store.signature import signature

NEAR = 0.7
"""Smallest cosine of a near task; docs/cache.md has the figures that it was chosen on."""


class Calibrated(Protocol):
    """The result of a calibration."""

    @property
    def adapter(self) -> Adapter:
        """The adapter to store."""

    @property
    def outcome(self) -> Outcome:
        """The run's vectors, rounds, choice and gate."""


C = TypeVar("C", bound=Calibrated)


@dataclass(frozen=True)
class Found:
    """What the store had for a request: ``exact``, ``near`` (then there is a neighbour) or ``miss``, and why, in a sentence."""

    kind: str
    why: str
    neighbour: Neighbour | None = None


@dataclass(frozen=True)
class Answer:
    """An answered request: what was found, and the version (found or newly stored) that answers it."""

    found: Found
    entry: Entry
    adapter: Adapter


def exact(store: Store, key: TaskKey) -> Answer | None:
    """The stored answer to a request, or None. No model is needed."""
    stored = store.latest(key)
    if stored is None:
        return None
    entry = stored.entry
    why = f"same federation, model, prompt, labels and form: version {entry.version} of {entry.task!r} is the answer"
    return Answer(Found("exact", why), entry, stored.adapter)


def request(
    store: Store,
    key: TaskKey,
    method: Method,
    calibrate: Callable[[Starter], C],
    reference: Callable[[], Array32],
    *,
    recalibrate: bool = False,
) -> tuple[Answer, C | None]:
    """Answer a request; equal requests at the same time calibrate once.

    ``calibrate`` runs the federation; its argument may return a warm start. ``reference`` computes the vectors that signatures
    are centred on, if the store has none for this model. With ``recalibrate``, exact hits are ignored and a new version
    is stored.

    Returns:
        The answer, and the calibration unless the answer was stored.
    """
    hit = None if recalibrate else exact(store, key)
    if hit is not None:
        return hit, None
    with leased(store, key):
        hit = None if recalibrate else exact(store, key)  # the process that held the lease has stored it
        if hit is not None:
            return hit, None
        search = _Search(store, key, method, reference)
        calibrated = calibrate(search.start)
        vector = signature(calibrated.outcome.context, store.reference(key, reference))
        metrics = _metrics(calibrated.outcome) | {"found": search.found.kind}
        entry = store.put(key, calibrated.adapter, vector, metrics)
    return Answer(search.found, entry, calibrated.adapter), calibrated


class _Search:
    """Looks for a near task, once stage 1 has the new task's vectors."""

    def __init__(self, store: Store, key: TaskKey, method: Method, reference: Callable[[], Array32]) -> None:
        self._store, self._key, self._method, self._reference = store, key, method, reference
        self.found = Found("miss", "the run was resumed from its checkpoint, without a search for a near task")

    def start(self, context: Context, initial: Coefficients) -> Start | None:
        """A warm start from the nearest task, or None.

        A private run has none: an earlier run's use of the same examples is not in its ε.
        """
        if self._method.promises_noise:
            self.found = Found("miss", "a private run has no warm start, because its ε does not cover earlier runs")
            return None
        vector = signature(context, self._store.reference(self._key, self._reference))
        for neighbour in self._store.nearest(self._key, vector):
            described = f"{neighbour.entry.task!r}, version {neighbour.entry.version}, at a cosine of {neighbour.cosine:.2f}"
            if neighbour.cosine < NEAR:
                self.found = Found("miss", f"the nearest task is {described}; a warm start needs {NEAR}")
                return None
            old = self._store.get(neighbour.entry.id).adapter
            if old.coefficients.is_identity or old.context.layers != context.layers:
                continue  # its gate is closed, or it has other layers, so it cannot start a run
            rounds = math.ceil(self._method.rounds.rounds / 2)
            start = warm_start(old.coefficients, old.context, initial, context, rounds)
            core = "" if start.core_kept is None else f"; {start.core_kept:.0%} of Γ's norm carried over"
            why = f"warm start from {described}, {rounds} rounds instead of {self._method.rounds.rounds}{core}"
            self.found = Found("near", why, neighbour)
            return start
        self.found = Found("miss", "the store has no calibrated task of this federation and model")
        return None


def _metrics(outcome: Outcome) -> dict[str, float | int | bool | None]:
    chosen = outcome.held_out
    return {
        "rounds": outcome.state.round,
        "held_out_loss": None if chosen is None else chosen.loss,
        "held_out_accuracy": None if chosen is None else chosen.accuracy,
        "gate_open": None if outcome.gate is None else outcome.gate.is_open,
    }
