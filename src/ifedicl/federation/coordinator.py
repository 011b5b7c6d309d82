"""The server's logic: the three stages of the paper over any engine, with a checkpoint after each step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from ifedicl import seeds
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.aggregation import AGGREGATE_VECTORS
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.robust import Trust, robust_vectors
from ifedicl.core.subspace import Context, subspace_basis
from ifedicl.core.vectors import Array32, ContextVectors, pooled
from ifedicl.core.warm_start import Start
from ifedicl.errors import FederationError, LimitsReachedError
from ifedicl.federation.assignment import Assignment
from ifedicl.federation.checkpoint import Memory
from ifedicl.federation.client_pool import ClientPool
from ifedicl.federation.engine import Engine
from ifedicl.federation.events import Begun, Event, RoundDone, ignore
from ifedicl.federation.reply_validation import Checks, can_travel, rank, tally_of_all
from ifedicl.federation.selection import HeldOut
from ifedicl.federation.state import RoundRecord, State
from ifedicl.federation.update_rules import along_gradient, along_updates
from ifedicl.federation.vector_collection import VectorCollection
from ifedicl.metrics import Comparison
from ifedicl.settings import Coordination, Method
from ifedicl.task import Task

_log = logging.getLogger(__name__)
_USUAL = Coordination()

Starter: TypeAlias = Callable[[Context, Coefficients], Start | None]
"""Given the first context and the coefficients of a cold start, another start; None: the cold one."""


@dataclass(frozen=True)
class Outcome:
    """What a run ends with.

    Attributes:
        context: global vectors and basis.
        coefficients: of the chosen round, or identity where the gate stayed shut.
        readout: reads the labels off; None: the label words do.
        chosen_round: the number of completed rounds they come from.
        gate: None where the settings have no gate or no client holds gate examples.
        state: the last checkpoint.
    """

    context: Context
    coefficients: Coefficients
    readout: Readout | None
    chosen_round: int
    gate: Comparison | None
    state: State


class Coordinator:
    """Runs one task over the clients of an engine."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        method: Method,
        model: ModelShape,
        *,
        coordination: Coordination = _USUAL,
        checkpoint_file: Path | None = None,
        observer: Callable[[Event], None] = ignore,
        starter: Starter | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            engine: reaches the clients.
            task: what is asked.
            method: the settings.
            model: which model everyone must use.
            coordination: deadline, fewest replies and patience; a resume may bring others.
            checkpoint_file: written after each step; left out: the run cannot be resumed.
            observer: told of each step, delivery and round as it happens.
            starter: asked once, after the first stage 1, with its context and the cold start's coefficients, for another start;
                None from it, or left out: the cold start.
        """
        self._task = task
        self._method = method
        self._model = model
        self._coordination = coordination
        self._observer = observer
        self._starter = starter
        assignment = Assignment(task, method, model)
        initial = assignment.initial
        self._memory = Memory(State(assignment.digest, 0, 0, method.rounds.rounds, initial, initial), checkpoint_file)
        self._clients = ClientPool(engine, assignment, self._memory, coordination, observer)
        self._collection = VectorCollection(self._clients, assignment, self._memory)
        self._held_out = HeldOut(self._clients, assignment, self._memory)
        self._checks = Checks(assignment)
        self._move = along_gradient if method.takes_gradients else along_updates

    def run(self, *, resume: bool = False, more_rounds: int = 0) -> Outcome:
        """Run all stages, or what is left of them.

        Args:
            resume: go on from the checkpoint, where there is one.
            more_rounds: after a finished run: vectorise examples added since, and calibrate so many rounds more.

        Raises:
            TooFewClientsError: fewer usable replies than ``coordination.min_clients``. The checkpoint stays for a resume. Where
                the owners' limits alone are why, and rounds were done, the run ends with those.
            ConfigError: the checkpoint is of another task, method or model.
            StorageError: the checkpoint cannot be written or read.
        """
        found = (resume or more_rounds > 0) and self._restore(more_rounds)
        self._observer(Begun(self._state if found else None))

        # Stage 1 and 2a: context vectors, and their mean over clients (Eq. 1-3)
        if self._state.vectors_due:
            self._refresh_vectors()
        self._held_out.measure_zero_shot()

        # Stage 2b: rounds of calibration (Eq. 4-7)
        while not self._state.is_finished and not self._is_stale():
            try:
                self._round()
            except LimitsReachedError as error:
                if self._state.best_round is None or self._state.round == self._state.phase_start:
                    raise  # nothing was done yet that could be kept
                _log.warning("the rounds end here: %s", error)
                self._memory.keep(self._state.ended())
        return self._outcome()

    def _round(self) -> None:
        # Step 1: the cohort of this round
        state, settings = self._state, self._method.rounds
        cohort = self._cohort(state.round)

        # Step 2: each client says where they should go by its own examples (Eq. 6); step 3: the server takes them there (Eq. 7)
        moved = self._move(self._clients, cohort, state, self._checks)
        coefficients = moved.coefficients.rounded  # what is evaluated and kept is what the clients are sent
        if not can_travel(coefficients):
            raise FederationError(
                f"round {state.round + 1}: the server's step left the numbers that coefficients can have. Lower "
                "server.learning_rate. What was done is kept"
            )

        # Step 4: held-out examples of all clients say whether this is the best round so far
        completed = state.round + 1
        last = completed == state.last_round
        evaluated = self._method.holdout.selection > 0 and (last or completed % settings.evaluate_every == 0)
        by_client = self._held_out.evaluate(coefficients) if evaluated else {}
        record = RoundRecord(completed, moved.clients, moved.loss, by_client)

        # Step 5: remember
        moved_on = replace(
            self._state,  # the exchanges of this round are in it by now
            round=completed,
            coefficients=coefficients,
            moments=moved.moments,
            history=(*state.history, record),
        )
        self._memory.keep(self._with_choice(moved_on, record))
        self._observer(RoundDone(record, state.last_round))

    def _with_choice(self, state: State, record: RoundRecord) -> State:
        """The state after a round, with this round as the best one if it is."""
        by = self._method.rounds.select_by
        best = next((item for item in state.history if item.round == state.best_round), None)
        if by == "last" or best is None or best.held_out is None:
            return state.with_best()
        if record.held_out is None:
            return state
        # A client that one of them lacks would make that round look better, or worse, by its examples alone.
        both = record.by_client.keys() & best.by_client.keys()
        now, then = (tally_of_all({name: item.by_client[name] for name in both}) for item in (record, best))
        is_better = now is not None and then is not None and rank(now, by) < rank(then, by)
        return state.with_best() if is_better else replace(state, stale=state.stale + 1)

    def _is_stale(self) -> bool:
        patience = self._coordination.patience
        return patience > 0 and self._state.stale >= patience

    def _cohort(self, round_number: int) -> tuple[str, ...]:
        names, settings = self._clients.names, self._method.rounds
        if settings.client_fraction < 1:
            # Who gave no vectors has nothing to train on, and the draw would be the same after a resume.
            names = tuple(name for name in names if name in self._state.cursors)
        size = min(len(names), max(self._coordination.min_clients, round(settings.client_fraction * len(names)), 1))
        if size == len(names):
            return names
        drawn = seeds.generator(self._method.seed, "cohort", round_number).choice(len(names), size=size, replace=False)
        return tuple(names[position] for position in sorted(drawn))

    def _refresh_vectors(self) -> None:
        """Gather the clients' vectors; put new global vectors in place."""
        in_order = self._agreed(self._collection.vectors())
        balanced = self._method.vectors.balance == "class"
        counted = in_order if balanced else [vectors.merged() for vectors in in_order]
        mean = AGGREGATE_VECTORS[self._method.weighting](counted)
        context = Context(mean, self._basis(in_order), self._checks.assignment.layers.start)
        # What the clients inject has crossed the network in this dtype; the adapter must hold the same numbers.
        context = context.rounded(self._method.vectors.wire_dtype)
        if not context.is_finite:
            raise FederationError(
                f"the global vectors do not fit {self._method.vectors.wire_dtype}; set vectors.wire_dtype to float32. "
                "Nothing was handed out"
            )
        before, now = self._state.context, replace(self._state, context=context, vectors_due=False)
        changed = before is None or before.digest != context.digest
        if changed:  # coefficients chosen for other vectors prove nothing for these
            now = replace(now, best_round=None, stale=0, zero_shot=None)
        if before is None:
            now = self._warmed_up(now, context)
        self._memory.keep(now)
        if changed:
            self._clients.install(self._clients.names)

    def _agreed(self, vectors: list[ContextVectors]) -> list[ContextVectors]:
        """The clients' vectors, or with [robust] what a minority of liars cannot steer, as if it were one client's."""
        robust = self._method.robust
        if robust is None:
            return vectors
        agreed = robust_vectors(vectors, robust.rule, Trust(robust.liars))
        if not agreed.examples:
            raise FederationError(
                f"no class is held by as many clients as [robust] needs to out-vote liars among {len(vectors)}; take "
                'vectors.balance = "none", fewer robust.liars, or more clients'
            )
        return [agreed]

    def _warmed_up(self, state: State, context: Context) -> State:
        """The state with a warm start, if there is one. It is saved with the first context, so that a resume keeps it."""
        start = None if self._starter is None else self._starter(context, state.coefficients)
        if start is None:
            return state
        return replace(state, coefficients=start.coefficients, best=start.coefficients, phase_rounds=start.rounds)

    def _basis(self, vectors: Sequence[ContextVectors]) -> Array32 | None:
        """Once for all: Γ means nothing without the basis that it was calibrated in."""
        subspace, seed = self._method.subspace, self._method.seed
        if subspace is None:
            return None
        if self._state.context is not None:
            return self._state.context.basis
        first = self._checks.assignment.layers.start
        return subspace_basis(pooled(vectors).present_means, subspace.rank, seeds.generator(seed, "basis"), first_layer=first)

    def _outcome(self) -> Outcome:
        self._held_out.fit_readout()
        gate = self._held_out.compare()
        # Stage 3 needs these and nothing else
        state = self._state
        assert state.context is not None
        assert state.best_round is not None
        fallback = gate is not None and not gate.is_open
        coefficients = self._checks.assignment.identity if fallback else state.best
        readout = None if fallback else state.readout
        return Outcome(state.context, coefficients, readout, state.best_round, gate, state)

    def _restore(self, more_rounds: int) -> bool:
        found = self._memory.recall()
        if found and more_rounds and (self._state.is_finished or self._is_stale()):
            self._memory.keep(self._state.with_more_rounds(more_rounds))
        return found

    @property
    def _state(self) -> State:
        return self._memory.state
