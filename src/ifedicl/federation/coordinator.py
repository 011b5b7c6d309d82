"""The server's logic: the three stages of the paper over any engine, with a checkpoint after each step."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from ifedicl import seeds
from ifedicl.core.aggregation import AGGREGATE_VECTORS, GradientSum, average_coefficients
from ifedicl.core.coefficients import Coefficients, active_writes
from ifedicl.core.readout import TEMPERATURES, Readout, ReadoutSums, projection
from ifedicl.core.schedules import SCHEDULES
from ifedicl.core.server import Moments, stepped
from ifedicl.core.subspace import BASIS_MEANS, Context, subspace_basis
from ifedicl.core.vectors import Array32, ContextVectors
from ifedicl.core.warm import Start
from ifedicl.data import Role
from ifedicl.errors import ConfigError, Fault, FederationError, TooFewClientsError
from ifedicl.federation import checkpoint
from ifedicl.federation.checkpoint import RoundRecord, State, Traffic
from ifedicl.federation.checks import (
    Checks,
    ModelShape,
    is_usable_context,
    is_usable_evaluation,
    rank,
    total,
)
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.events import Delivered, Event, RoundDone, StepStarted, ignore
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    ContextReply,
    ContextRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    GradientReply,
    GradientRequest,
    Request,
    StatisticsReply,
    StatisticsRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
)
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import Method, ServerSettings
from ifedicl.task import Task

_log = logging.getLogger(__name__)
R = TypeVar("R", VectorsReply, ContextReply, UpdateReply, GradientReply, EvaluateReply, StatisticsReply, CompareReply)

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


@dataclass(frozen=True)
class _Move:
    """Where a round takes the coefficients.

    Attributes:
        coefficients: the new ones.
        moments: what the server's optimizer remembers; None where it only averages.
        clients: who had a part in it.
        loss: mean training loss in nats; None of no examples.
    """

    coefficients: Coefficients
    moments: Moments | None
    clients: tuple[str, ...]
    loss: float | None


class Coordinator:
    """Runs one task over the clients of an engine."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        method: Method,
        model: ModelShape,
        *,
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
            checkpoint_file: written after each step; left out: the run cannot be resumed.
            observer: told of each step, delivery and round as it happens.
            starter: asked once, after the first stage 1, with its context and the cold start's coefficients, for another start;
                None from it, or left out: the cold start.
        """
        self._engine = engine
        self._task = task
        self._method = method
        self._model = model
        self._checkpoint_file = checkpoint_file
        self._observer = observer
        self._starter = starter
        self._checks = Checks(task, method, model)
        self._state = self._fresh()

    def run(self, *, resume: bool = False, more_rounds: int = 0) -> Outcome:
        """Run all stages, or what is left of them.

        Args:
            resume: go on from the checkpoint, where there is one.
            more_rounds: after a finished run: vectorise examples added since, and calibrate so many rounds more.

        Raises:
            TooFewClientsError: fewer usable replies than ``rounds.min_clients``. The checkpoint stays for a resume.
            ConfigError: the checkpoint is of another task, method or model.
            StorageError: the checkpoint cannot be written or read.
        """
        if resume or more_rounds:
            self._restore(more_rounds)

        # Stage 1 and 2a: context vectors, and their mean over clients (Eq. 1-3)
        if self._state.vectors_due:
            self._refresh_vectors()
        self._measure_zero_shot()

        # Stage 2b: rounds of calibration (Eq. 4-7)
        while not self._state.is_finished and not self._is_stale():
            every = self._method.vectors.refresh_every
            if every and self._state.round > self._state.phase_start and self._state.round % every == 0:
                self._refresh_vectors()
                self._measure_zero_shot()
            self._round()
        return self._outcome()

    def _round(self) -> None:
        # Step 1: the cohort of this round
        state, settings = self._state, self._method.rounds
        cohort = self._cohort(state.round)

        # Step 2: each client says where they should go by its own examples (Eq. 6); step 3: the server takes them there (Eq. 7)
        moved = self._along_gradient(cohort) if self._method.takes_gradients else self._along_updates(cohort)
        coefficients = moved.coefficients.rounded  # what is evaluated and kept is what the clients are sent

        # Step 4: held-out examples of all clients say whether this is the best round so far
        completed = state.round + 1
        last = completed == state.phase_start + state.phase_rounds
        evaluated = self._method.holdout.selection > 0 and (last or completed % settings.evaluate_every == 0)
        by_client = self._evaluate(coefficients) if evaluated else {}
        record = RoundRecord(completed, moved.clients, moved.loss, by_client)

        # Step 5: remember
        self._save(
            round=completed,
            coefficients=coefficients,
            moments=moved.moments,
            history=(*state.history, record),
            **self._choice(record, coefficients),
        )
        self._observer(RoundDone(record, state.phase_start + state.phase_rounds))

    def _along_updates(self, cohort: Sequence[str]) -> _Move:
        """The mean of the clients' own coefficients, or a step of the server's optimizer in its direction."""
        state = self._state
        request = UpdateRequest(self._context_id(), state.round, state.phase_start, state.phase_rounds, state.coefficients)
        replies, failures = self._ask(dict.fromkeys(cohort, request), UpdateReply, self._checks.is_usable_update)
        self._require(replies, failures, "update")
        mean = average_coefficients(
            [reply.coefficients for reply in replies.values()],
            [reply.examples for reply in replies.values()],
            self._method.rounds.weighting,
        )
        loss = float(np.mean([reply.loss for reply in replies.values()]))
        if self._method.server is None:
            return _Move(mean, None, tuple(replies), loss)
        back = {name: array - mean.arrays[name] for name, array in state.coefficients.arrays.items()}
        return _Move(*self._step(back, self._method.server), tuple(replies), loss)

    def _along_gradient(self, cohort: Sequence[str]) -> _Move:
        """A step of the server's optimizer on the gradient of this round's examples: the same whoever holds them.

        The sum is divided by how many examples a round draws on average, not by how many it drew: a fixed number.
        """
        state, server = self._state, self._method.server
        assert server is not None
        request = GradientRequest(self._context_id(), state.round, state.coefficients)
        replies, failures = self._ask(dict.fromkeys(cohort, request), GradientReply, self._checks.is_usable_gradient)
        self._require(replies, failures, "gradient")
        sums = reduce(GradientSum.combine, [reply.sums for reply in replies.values()])
        expected = server.draw * sum(vectors.examples for vectors in state.client_vectors.values())
        gradient = {name: array / np.float32(expected) for name, array in sums.arrays.items()}
        loss = sums.loss / sums.examples if sums.examples else None
        decay = self._method.calibration.weight_decay
        return _Move(*self._step(gradient, server, decay), tuple(replies), loss)

    def _step(
        self, direction: Mapping[str, Array32], server: ServerSettings, decay: float = 0.0
    ) -> tuple[Coefficients, Moments]:
        state = self._state
        progress = (state.round - state.phase_start) / state.phase_rounds
        return stepped(
            state.coefficients,
            direction,
            state.moments or Moments.none(state.coefficients),
            server.optimizer,
            rate=server.learning_rate * SCHEDULES[server.schedule](progress),
            momentum=server.momentum,
            decay=decay,
        )

    def _choice(self, record: RoundRecord, coefficients: Coefficients) -> dict[str, Any]:
        """The fields of the state that say which round is best."""
        state, by = self._state, self._method.rounds.select_by
        chosen = {"best": coefficients, "best_round": record.round, "stale": 0}
        best = next((item.held_out for item in state.history if item.round == state.best_round), None)
        if by == "last" or best is None:
            return chosen
        if record.held_out is None:
            return {}
        return chosen if rank(record.held_out, by) < rank(best, by) else {"stale": state.stale + 1}

    def _is_stale(self) -> bool:
        patience = self._method.rounds.patience
        return patience > 0 and self._state.stale >= patience

    def _cohort(self, round_number: int) -> tuple[str, ...]:
        names, settings = self._engine.clients(), self._method.rounds
        if settings.client_fraction < 1:
            # Who gave no vectors has nothing to train on, and the draw would be the same after a resume.
            names = tuple(name for name in names if name in self._state.client_vectors)
        size = min(len(names), max(settings.min_clients, round(settings.client_fraction * len(names)), 1))
        if size == len(names):
            return names
        drawn = seeds.generator(self._method.seed, "cohort", round_number).choice(len(names), size=size, replace=False)
        return tuple(names[position] for position in sorted(drawn))

    def _refresh_vectors(self) -> None:
        """Ask all clients for vectors of examples they have not vectorised yet; put the new global vectors in place."""
        state = self._state
        requests = {
            name: VectorsRequest(self._task, self._method, self._model.fingerprint, state.cursors.get(name, ""))
            for name in self._engine.clients()
        }
        replies, failures = self._ask(requests, VectorsReply, self._checks.is_usable_vectors)
        held, cursors, dtypes = dict(state.client_vectors), dict(state.cursors), dict(state.dtypes)
        for name, reply in replies.items():
            held[name] = reply.vectors if reply.replaces or name not in held else held[name].combine(reply.vectors)
            cursors[name], dtypes[name] = reply.cursor, reply.dtype
        self._save(client_vectors=held, cursors=cursors, dtypes=dtypes)
        usable = {name: vectors for name, vectors in held.items() if vectors.examples > 0}
        self._require(usable, failures, "vectors")
        in_order = [usable[name] for name in self._engine.clients() if name in usable]
        classes = len(self._task.labels) if self._method.vectors.balance == "class" else 1
        mean = AGGREGATE_VECTORS[self._method.vectors.weighting]([vectors.merged(classes) for vectors in in_order])
        context = Context(mean, self._basis(in_order))
        # What the clients inject has crossed the network in this dtype; the adapter must hold the same numbers.
        context = context.rounded(self._method.vectors.wire_dtype)
        if not context.is_finite:
            raise FederationError(
                f"the global vectors do not fit {self._method.vectors.wire_dtype}; set vectors.wire_dtype to float32. "
                "Nothing was handed out"
            )
        changed = state.context is None or state.context.digest != context.digest
        # Coefficients chosen for other vectors prove nothing for these.
        anew = {"best_round": None, "stale": 0, "zero_shot": None} if changed else {}
        self._save(context=context, vectors_due=False, **anew, **self._start(context))
        if len(set(dtypes.values())) > 1:
            mix = ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
            _log.warning("clients compute in different dtypes (%s); their vectors differ a little for that alone", mix)
        if changed:
            self._install(self._engine.clients())

    def _start(self, context: Context) -> dict[str, Any]:
        """The fields of the state that a warm start changes, saved with the first context so that a resume keeps them."""
        state = self._state
        if self._starter is None or state.context is not None:
            return {}
        start = self._starter(context, state.coefficients)
        if start is None:
            return {}
        return {"coefficients": start.coefficients, "best": start.coefficients, "phase_rounds": start.rounds}

    def _basis(self, vectors: Sequence[ContextVectors]) -> Array32 | None:
        """Once for all: Γ means nothing without the basis that it was calibrated in."""
        subspace, seed = self._method.subspace, self._method.seed
        if subspace is None:
            return None
        if self._state.context is not None:
            return self._state.context.basis
        means = BASIS_MEANS[subspace.source](vectors, subspace.parts)
        return subspace_basis(means, subspace.rank, seeds.generator(seed, "basis"))

    def _install(self, names: Iterable[str]) -> None:
        self._exchange(dict.fromkeys(names, self._context_request()), ContextReply, is_usable_context)

    def _measure_zero_shot(self) -> None:
        if self._state.zero_shot is None and self._method.holdout.selection > 0:
            self._save(zero_shot=total(self._evaluate(self._identity)))

    def _context_request(self) -> ContextRequest:
        assert self._state.context is not None
        return ContextRequest(self._task, self._method, self._model.fingerprint, self._state.context, self._context_id())

    def _context_id(self) -> str:
        """Names task, method and context together."""
        assert self._state.context is not None
        return hashlib.sha256((self._run_id() + self._state.context.digest).encode()).hexdigest()[:16]

    def _evaluate(self, coefficients: Coefficients) -> dict[str, Tally]:
        """Each client's counts and sums on its selection examples."""
        replies = self._tried(EvaluateRequest(self._context_id(), Role.SELECTION, coefficients))
        return {name: reply.tallies[0] for name, reply in replies.items()}

    def _tried(self, request: EvaluateRequest) -> dict[str, EvaluateReply]:
        answers = len(request.candidates)
        requests = dict.fromkeys(self._engine.clients(), request)
        return self._ask(requests, EvaluateReply, lambda reply: is_usable_evaluation(reply, answers))[0]

    def _fit_readout(self) -> None:
        """Once for each best round: sums of all clients to candidates, and the best of them on held-out examples.

        The label words stay where no candidate does better, or too few clients answer.
        """
        state, method = self._state, self._method
        if method.readout is None or state.readout_round == state.best_round:
            return
        request = StatisticsRequest(self._context_id(), state.best)
        requests = dict.fromkeys(self._engine.clients(), request)
        replies, failures = self._ask(requests, StatisticsReply, self._checks.is_usable_statistics)
        self._require(replies, failures, "statistics")
        sums = reduce(ReadoutSums.combine, [reply.sums for reply in replies.values()])
        readouts = sums.solve(projection(self._model.width, method.readout.most_features, method.seed))
        trial = EvaluateRequest(self._context_id(), Role.SELECTION, state.best, tuple(readouts), TEMPERATURES)
        answers = zip(*(reply.tallies for reply in self._tried(trial).values()), strict=True)
        ranks = [rank(sum(tallies, Tally()), method.rounds.select_by) for tallies in answers]  # none if no client answered
        best = trial.candidates[ranks.index(min(ranks))] if ranks else None
        self._save(readout=best, readout_round=state.best_round)

    def _gate(self) -> Comparison | None:
        """The chosen adapter and the raw model on the clients' gate examples; None where no client holds any."""
        if self._method.holdout.gate == 0:
            return None
        request = CompareRequest(self._context_id(), self._state.best, self._state.readout)
        requests = dict.fromkeys(self._engine.clients(), request)
        replies, failures = self._ask(requests, CompareReply, self._checks.is_usable_comparison)
        if not replies and set(failures.values()) <= {FailureCode.NO_EXAMPLES}:
            return None
        return sum((reply.comparison for reply in replies.values()), Comparison())

    def _outcome(self) -> Outcome:
        self._fit_readout()
        # Stage 3 needs these and nothing else
        state = self._state
        assert state.context is not None
        assert state.best_round is not None
        gate = self._gate()
        fallback = gate is not None and not gate.is_open
        coefficients = self._identity if fallback else state.best
        readout = None if fallback else state.readout
        return Outcome(state.context, coefficients, readout, state.best_round, gate, self._state)

    def _ask(
        self, requests: Mapping[str, Request], expected: type[R], usable: Callable[[R], bool]
    ) -> tuple[dict[str, R], dict[str, FailureCode]]:
        """Usable replies in client order, and the other clients' codes.

        A client that lost the global vectors is sent them and asked again.
        """
        replies, failures = self._exchange(requests, expected, usable)
        forgetful = [name for name, code in failures.items() if code is FailureCode.NO_CONTEXT]
        if forgetful and self._state.context is not None:
            self._install(forgetful)
            again, failures_again = self._exchange({name: requests[name] for name in forgetful}, expected, usable)
            replies |= again
            failures = {name: code for name, code in failures.items() if name not in forgetful} | failures_again
        return {name: replies[name] for name in self._engine.clients() if name in replies}, failures

    def _exchange(
        self, requests: Mapping[str, Request], expected: type[R], usable: Callable[[R], bool]
    ) -> tuple[dict[str, R], dict[str, FailureCode]]:
        """One request to each client; what came back, and what it cost."""
        step = next(iter(requests.values())).kind
        self._observer(StepStarted(step, self._state.round, len(requests)))
        replies: dict[str, R] = {}
        failures: dict[str, FailureCode] = {}
        traffic = list(self._state.traffic)
        for delivery in self._engine.exchange(requests, self._method.rounds.deadline_seconds):
            reply = delivery.reply
            if isinstance(reply, expected) and usable(reply):
                replies[delivery.client] = reply
            else:
                failures[delivery.client] = reply.code if isinstance(reply, Failure) else FailureCode.BAD_REPLY
            traffic.append(self._traffic(delivery, step, failures.get(delivery.client)))
            self._observer(Delivered(traffic[-1]))
        self._state = self._state.with_(traffic=tuple(traffic))
        return replies, failures

    def _traffic(self, delivery: Delivery, step: str, failure: FailureCode | None) -> Traffic:
        return Traffic(
            client=delivery.client,
            step=step,
            round=self._state.round,
            bytes_down=delivery.bytes_down,
            bytes_up=delivery.bytes_up,
            seconds=delivery.seconds,
            failure=failure and failure.value,
        )

    def _require(self, replies: Mapping[str, object], failures: Mapping[str, FailureCode], step: str) -> None:
        needed = self._method.rounds.min_clients
        if len(replies) >= needed:
            return
        reasons = ", ".join(f"{name}: {code.value}" for name, code in failures.items())
        raise TooFewClientsError(
            f"round {self._state.round + 1}, {step}: {len(replies)} of {len(self._engine.clients())} clients gave a usable "
            f"reply, rounds.min_clients asks for {needed} ({reasons}). What was done is kept: resume when they are back"
        )

    def _fresh(self) -> State:
        injection, layers = self._method.injection, self._model.layers
        initial = Coefficients.initial(
            self._checks.form,
            active_writes(layers, injection.active_layers(layers), injection.writes),
            context_scale=injection.context_scale,
            activation_scale=injection.activation_scale,
        )
        return State(self._run_id(), 0, 0, self._method.rounds.rounds, initial, initial)

    def _restore(self, more_rounds: int) -> None:
        stored = checkpoint.load(self._checkpoint_file) if self._checkpoint_file else None
        if stored is None:
            return
        if stored.run != self._run_id():
            fault = Fault(
                "checkpoint",
                f"one of run {stored.run[:12]}",
                f"run {self._run_id()[:12]}",
                "Task, method or model were changed since. Restore them, or start again in another folder.",
            )
            raise ConfigError(str(self._checkpoint_file), [fault])
        self._state = stored
        if more_rounds and (stored.is_finished or self._is_stale()):
            self._save(
                phase_start=stored.round,
                phase_rounds=more_rounds,
                coefficients=stored.best,
                moments=None,  # they remember the way to where the rounds ended, not to where they go on
                stale=0,
                vectors_due=True,  # new vectors make earlier rounds no candidates any more; the same ones do not
            )

    @property
    def _identity(self) -> Coefficients:
        return Coefficients.identity(self._checks.form)

    def _run_id(self) -> str:
        content = [self._task.digest, self._method.model_dump(mode="json"), self._model.fingerprint]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _save(self, **changes: Any) -> None:
        self._state = self._state.with_(**changes)
        if self._checkpoint_file is not None:
            checkpoint.save(self._state, self._checkpoint_file)
