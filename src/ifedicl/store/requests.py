"""A task request: look up, warm start, calibrate, store (the paper's application optimisation)."""

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
"""Cosine from which a stored task is near; docs/cache.md has the figures that it was chosen on."""


class Calibrated(Protocol):
    """What a calibration ends with."""

    @property
    def adapter(self) -> Adapter:
        """To be stored."""
        ...

    @property
    def outcome(self) -> Outcome:
        """How it came to be."""
        ...


C = TypeVar("C", bound=Calibrated)


@dataclass(frozen=True)
class Found:
    """What the store knew of a request, and why it was used or not.

    Attributes:
        kind: ``exact``, ``near`` or ``miss``.
        why: one sentence.
        neighbour: the near task; else None.
    """

    kind: str
    why: str
    neighbour: Neighbour | None = None


@dataclass(frozen=True)
class Answer:
    """A request that was answered.

    Attributes:
        found: hit or miss.
        entry: the version that answers it, or that was stored.
        adapter: the answer.
    """

    found: Found
    entry: Entry
    adapter: Adapter


def exact(store: Store, key: TaskKey) -> Answer | None:
    """The stored answer to a request, without a model; None where there is none."""
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
    """Answer a request; equal ones at the same time calibrate once.

    Args:
        store: looked up first, and written last.
        key: of the request.
        method: the settings.
        calibrate: runs the federation, with what may give it a warm start.
        reference: computes what signatures are centred on, if the store has none for this model.
        recalibrate: calibrate even where there is an exact hit, and store a new version.

    Returns:
        The answer, and the calibration that it took, if any.
    """
    hit = None if recalibrate else exact(store, key)
    if hit is not None:
        return hit, None
    with leased(store, key):
        hit = None if recalibrate else exact(store, key)  # whoever we waited for has stored it
        if hit is not None:
            return hit, None
        search = _Search(store, key, method, reference)
        calibrated = calibrate(search.start)
        own = signature(calibrated.outcome.context, store.reference(key, reference))
        metrics = _metrics(calibrated.outcome) | {"found": search.found.kind}
        entry = store.put(key, calibrated.adapter, own, metrics)
    return Answer(search.found, entry, calibrated.adapter), calibrated


class _Search:
    """Looks for a near task once stage 1 has given the new one's vectors."""

    def __init__(self, store: Store, key: TaskKey, method: Method, reference: Callable[[], Array32]) -> None:
        self._store, self._key, self._method, self._reference = store, key, method, reference
        self.found = Found("miss", "the run went on from its checkpoint; no near task was looked for")

    def start(self, context: Context, initial: Coefficients) -> Start | None:
        """A warm start from the nearest task, or None.

        A run that promises noise begins cold: what an earlier run told of the same examples is not in its own ε.
        """
        if self._method.promises_noise:
            self.found = Found("miss", "a run that promises noise begins cold, or its promise would leave out earlier runs")
            return None
        own = signature(context, self._store.reference(self._key, self._reference))
        for neighbour in self._store.nearest(self._key, own):
            described = f"{neighbour.entry.task!r}, version {neighbour.entry.version}, at a cosine of {neighbour.cosine:.2f}"
            if neighbour.cosine < NEAR:
                self.found = Found("miss", f"the nearest task is {described}; near is from {NEAR}")
                return None
            old = self._store.get(neighbour.entry.id).adapter
            if old.coefficients.is_identity or old.context.layers != context.layers:
                continue  # its gate stayed shut, or it holds other layers: there is nothing to begin with
            rounds = math.ceil(self._method.rounds.rounds / 2)
            start = warm_start(old.coefficients, old.context, initial, context, rounds)
            kept = "" if start.core_kept is None else f"; {start.core_kept:.0%} of Γ's norm carried over"
            why = f"warm start from {described}, {rounds} rounds instead of {self._method.rounds.rounds}{kept}"
            self.found = Found("near", why, neighbour)
            return start
        self.found = Found("miss", "no calibrated task of this federation and model is stored to begin with")
        return None


def _metrics(outcome: Outcome) -> dict[str, float | int | bool | None]:
    chosen = next((item.held_out for item in outcome.state.history if item.round == outcome.chosen_round), None)
    return {
        "rounds": outcome.state.round,
        "held_out_loss": None if chosen is None else chosen.loss,
        "held_out_accuracy": None if chosen is None else chosen.accuracy,
        "gate_open": None if outcome.gate is None else outcome.gate.is_open,
    }
