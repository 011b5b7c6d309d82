"""The coordinator: the three stages of the paper over any engine, with a checkpoint after each step."""

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
from ifedicl.errors import ConfigError, Fault, FederationError, LimitsReachedError
from ifedicl.federation.checkpoint import Memory
from ifedicl.federation.client_pool import ClientPool
from ifedicl.federation.engine import Engine
from ifedicl.federation.events import Begun, Event, RoundDone, ignore
from ifedicl.federation.forgetting import Forgetting
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.reply_validation import ReplyChecks, can_travel, rank, tally_of_all
from ifedicl.federation.selection import Selection
from ifedicl.federation.state import RoundRecord, State
from ifedicl.federation.update_rules import averaged_update, gradient_update
from ifedicl.federation.vector_collection import VectorCollection
from ifedicl.kinds.any_task import AnyTask
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import Coordination, Method

_log = logging.getLogger(__name__)

Starter: TypeAlias = Callable[[Context, Coefficients], Start | None]
"""Gives a warm start from the first context and the coefficients of a cold start; None: the cold start."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        context: global vectors and basis.
        coefficients: of the chosen round; identity if the gate is closed.
        readout: predicts the labels; None: the label words do.
        chosen_round: its number of completed rounds; 0: the raw model.
        gate: None if the settings have no gate, or no client has gate examples.
        state: the last checkpoint.
    """

    context: Context
    coefficients: Coefficients
    readout: Readout | None
    chosen_round: int
    gate: Comparison | None
    state: State

    @property
    def held_out(self) -> Tally | None:
        """The label words in the chosen round, on the examples that chose it; None: they were not asked for."""
        if self.chosen_round == 0 and self.state.history:
            return self.state.zero_shot
        return next((record.held_out for record in self.state.history if record.round == self.chosen_round), None)


class Coordinator:
    """Runs one task over the clients of an engine."""

    def __init__(
        self,
        engine: Engine,
        task: AnyTask,
        method: Method,
        model: ModelShape,
        *,
        coordination: Coordination = Coordination(),  # noqa: B008
        checkpoint_file: Path | None = None,
        observer: Callable[[Event], None] = ignore,
        starter: Starter | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            engine: reaches the clients.
            task: the question.
            method: the settings.
            model: the model that all clients must use.
            coordination: deadline, minimum clients and patience; they may differ after a resume.
            checkpoint_file: written after each step; None: the run cannot resume.
            observer: called with each event.
            starter: called once, after the first stage 1; None: the cold start.
        """
        self._task = task
        self._method = method
        self._model = model
        self._coordination = coordination
        self._observer = observer
        self._starter = starter
        manifest = Manifest.of(task, method, model)
        initial = manifest.initial
        self._memory = Memory(State(manifest.run, 0, 0, method.rounds.rounds, initial, initial), checkpoint_file)
        self._clients = ClientPool(engine, manifest, self._memory, coordination, observer)
        self._collection = VectorCollection(self._clients, manifest, self._memory)
        self._selection = Selection(self._clients, manifest, self._memory)
        self._checks = ReplyChecks(manifest)
        self._update = gradient_update if method.takes_gradients else averaged_update

    def run(self, *, resume: bool = False, more_rounds: int = 0, forgetting: Forgetting | None = None) -> Outcome:
        """Run all stages, or the rest of them.

        Args:
            resume: go on from the checkpoint, if there is one; with ``forgetting``, if it was interrupted.
            more_rounds: after a finished run, vectorise the added examples and calibrate for this many more rounds.
            forgetting: after a finished run, remove shares, and calibrate for its rounds without them.

        Raises:
            TooFewClientsError: fewer usable replies than ``coordination.min_clients``. The checkpoint stays for a resume. If
                only the owners' limits are the cause, and rounds were completed, the run ends with these rounds instead.
            ConfigError: the checkpoint is of another task, method or model; or more rounds of a run without rounds.
            StorageError: the checkpoint cannot be written or read.
        """
        if more_rounds and self._method.is_one_shot:
            remedy = "For added examples, run the config again in another folder; for rounds, take a preset that has some."
            fault = Fault("--more-rounds", str(more_rounds), "a run with rounds; rounds.rounds is 0", remedy)
            raise ConfigError("this run", [fault])
        found = (resume or more_rounds > 0 or forgetting is not None) and self._restore(more_rounds)
        if forgetting is not None and not (resume and forgetting.has_begun(self._state)):
            self._forget(forgetting)
        self._observer(Begun(self._state if found else None))
        rounds, phases = self._state.last_round, self._state.phases
        manifest = Manifest.of(self._task, self._method, self._model, rounds=rounds, phases=phases)
        self._clients.manifest = manifest

        # Stage 1 and 2a: context vectors, and their mean over clients (Eq. 1-3)
        if self._state.vectors_due:
            self._clients.introduce(self._clients.names)
            if self._method.is_one_shot:
                self._memory.keep(replace(self._state.with_best(), context=manifest.no_context, vectors_due=False))
            else:
                self._refresh_vectors()
        self._selection.measure_zero_shot()

        # Stage 2b: rounds of calibration (Eq. 4-7)
        while not self._state.is_finished and not self._is_stale():
            try:
                self._round()
            except LimitsReachedError as error:
                if self._state.best_round is None or self._state.round == self._state.phase_start:
                    raise  # no round is complete that could be kept
                _log.warning("the calibration ends early: %s", error)
                self._memory.keep(self._state.ended())
        return self._outcome()

    def _round(self) -> None:
        # Step 1: the cohort of this round
        state, settings = self._state, self._method.rounds
        cohort = self._cohort(state.round)

        # Step 2: the clients calibrate on their own examples (Eq. 6). Step 3: the server updates the coefficients (Eq. 7)
        update = self._update(self._clients, cohort, state, self._checks)
        # Clients receive the rounded numbers, so these are evaluated and stored.
        coefficients = self._allowed(update.coefficients).rounded
        if not can_travel(coefficients):
            raise FederationError(
                f"round {state.round + 1}: the server's step gives coefficients that are too large for the wire. Lower "
                "server.learning_rate. The earlier rounds are kept"
            )

        # Step 4: evaluate on the clients' held-out examples, to choose the best round
        completed = state.round + 1
        last = completed == state.last_round
        evaluated = self._method.holdout.selection > 0 and (last or completed % settings.evaluate_every == 0)
        by_client = self._selection.evaluate(coefficients) if evaluated else {}
        record = RoundRecord(completed, update.clients, update.loss, by_client)

        # Step 5: write the checkpoint
        after = replace(
            self._state,  # it has the traffic of this round, which ``state`` lacks
            round=completed,
            coefficients=coefficients,
            moments=update.moments,
            history=(*state.history, record),
        )
        self._memory.keep(self._with_choice(after, record))
        self._observer(RoundDone(record, state.last_round))

    def _with_choice(self, state: State, record: RoundRecord) -> State:
        """The state after a round, with this round as the best if it is."""
        by = self._method.rounds.select_by
        best = next((item for item in state.history if item.round == state.best_round), None)
        if by == "last" or best is None or best.held_out is None:
            return state.with_best()
        if record.held_out is None:
            return state
        # Only clients that evaluated both rounds count. Otherwise different examples alone could decide.
        both = record.by_client.keys() & best.by_client.keys()
        this, former = (tally_of_all({name: item.by_client[name] for name in both}) for item in (record, best))
        is_better = this is not None and former is not None and rank(this, by) < rank(former, by)
        return state.with_best() if is_better else replace(state, stale=state.stale + 1)

    def _is_stale(self) -> bool:
        patience = self._coordination.patience
        return patience > 0 and self._state.stale >= patience

    def _cohort(self, round_number: int) -> tuple[str, ...]:
        names, settings = self._clients.names, self._method.rounds
        if settings.client_fraction < 1:
            # A client that sent no vectors has nothing to train on.
            names = tuple(name for name in names if name in self._state.cursors)
        size = min(len(names), max(self._coordination.min_clients, round(settings.client_fraction * len(names)), 1))
        if size == len(names):
            return names
        drawn = seeds.generator(self._method.seed, "cohort", round_number).choice(len(names), size=size, replace=False)
        return tuple(names[position] for position in sorted(drawn))

    def _refresh_vectors(self) -> None:
        """Collect the clients' vectors, aggregate them and send the global vectors."""
        in_order = self._robust(self._collection.vectors())
        balanced = self._method.vectors.balance == "class"
        counted = in_order if balanced else [vectors.merged() for vectors in in_order]
        mean = AGGREGATE_VECTORS[self._method.weighting](counted)
        context = Context(mean, self._basis(in_order), self._checks.manifest.layers.start)
        # The clients inject the numbers that crossed the network in this dtype. The adapter must have the same ones.
        wire_dtype = self._method.vectors.wire_dtype
        context = context.rounded(wire_dtype)
        if not context.is_finite:
            raise FederationError(
                f"vectors.wire_dtype: the global vectors do not fit {wire_dtype}. Set it to float32. No client received them"
            )
        before, state = self._state.context, replace(self._state, context=context, vectors_due=False)
        changed = before is None or before.digest != context.digest
        if changed:  # rounds were compared under other vectors, so no earlier choice is valid
            state = replace(state, best_round=None, stale=0, zero_shot_by_client={})
        if before is None:
            state = self._warm_started(state, context)
        self._memory.keep(state)
        if changed:
            self._clients.install(self._clients.names)

    def _robust(self, vectors: list[ContextVectors]) -> list[ContextVectors]:
        """The clients' vectors; with [robust], one aggregate that a minority of lying clients cannot steer."""
        robust = self._method.robust
        if robust is None:
            return vectors
        aggregate = robust_vectors(vectors, robust.rule, Trust(robust.liars))
        if not aggregate.examples:
            raise FederationError(
                f"robust.liars: received {robust.liars:g}; no class has examples at enough of the {len(vectors)} clients to "
                'outvote so many. Set vectors.balance to "none", lower robust.liars, or add clients'
            )
        return [aggregate]

    def _warm_started(self, state: State, context: Context) -> State:
        """The state with a warm start, if there is one. It is stored with the first context, so a resume keeps it."""
        start = None if self._starter is None else self._starter(context, state.coefficients)
        if start is None:
            return state
        coefficients = self._allowed(start.coefficients)
        return replace(state, coefficients=coefficients, best=coefficients, phase_rounds=start.rounds)

    def _allowed(self, coefficients: Coefficients) -> Coefficients:
        """With λ and β where the method fixes them, whatever clients or an earlier task say."""
        return coefficients.core_alone if self._method.fixes_scalars else coefficients

    def _basis(self, vectors: Sequence[ContextVectors]) -> Array32 | None:
        """The basis. It never changes in a run, because Γ is valid only in the basis that it was calibrated in."""
        subspace, seed = self._method.subspace, self._method.seed
        if subspace is None:
            return None
        if self._state.context is not None:
            return self._state.context.basis
        first = self._checks.manifest.layers.start
        return subspace_basis(pooled(vectors).present_means, subspace.rank, seeds.generator(seed, "basis"), first_layer=first)

    def _outcome(self) -> Outcome:
        self._selection.settle()
        self._selection.fit_readout()
        gate = self._selection.compare()
        state = self._state
        assert state.context is not None
        assert state.best_round is not None
        fallback = gate is not None and not gate.is_open
        coefficients = self._checks.manifest.identity if fallback else state.best
        readout = None if fallback else state.readout
        return Outcome(state.context, coefficients, readout, state.best_round, gate, state)

    def _restore(self, more_rounds: int) -> bool:
        found = self._memory.recall()
        if found and more_rounds and (self._state.is_finished or self._is_stale()):
            self._memory.keep(self._state.with_more_rounds(more_rounds))
        return found

    def _forget(self, forgetting: Forgetting) -> None:
        """Begin without some shares. The checkpoint keeps the former state until the global vectors without them are there."""
        before = self._state
        forgetting.check(before, self._method)
        self._starter = lambda context, initial: forgetting.starter(before, context, initial)
        self._memory.begin_again(forgetting.begun(before, self._checks.manifest.initial))

    @property
    def _state(self) -> State:
        return self._memory.state
