"""Chooses the round and the readout, and opens or closes the gate, by the clients' held-out examples."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import TEMPERATURES, Readout, hidden_count, projection
from ifedicl.core.robust import Trust, trusted_clients
from ifedicl.federation import messages
from ifedicl.federation.checkpoint import Memory
from ifedicl.federation.client_pool import ClientPool, Participation
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import FailureCode
from ifedicl.federation.reply_validation import ReplyChecks, is_usable_evaluation, rank, tally_of_all
from ifedicl.metrics import Comparison, Tally

_log = logging.getLogger(__name__)

_SLACK = 2.0
"""The number of training examples is estimated from that of held-out ones and so many of its standard deviations."""


class Selection:
    """Chooses on the clients' selection examples, and compares with the raw model on their gate examples."""

    def __init__(self, clients: ClientPool, manifest: Manifest, memory: Memory) -> None:
        """Prepare; nothing is sent yet."""
        self._clients = clients
        self._manifest = manifest
        self._memory = memory
        self._checks = ReplyChecks(manifest)

    def measure_zero_shot(self) -> None:
        """Evaluate the raw model on the selection examples, once for each context.

        Without rounds the label words that a readout is compared with are the raw model's, so nothing is asked here; but a
        secure sum needs to know about how many examples there are.
        """
        method = self._manifest.method
        if self._memory.state.zero_shot is None and method.holdout.selection > 0 and method.measures_first:
            zero_shot = tally_of_all(self.evaluate(self._manifest.identity))
            self._memory.keep(replace(self._memory.state, zero_shot=zero_shot))

    def evaluate(self, coefficients: Coefficients) -> dict[str, Tally]:
        """The tallies on the selection examples of each trusted client."""
        replies = self._evaluations(messages.EvaluateRequest(self._clients.context_id, coefficients))
        tallies, by = {name: reply.tallies[0] for name, reply in replies.items()}, self._manifest.method.rounds.select_by
        scores = {name: rank(tally, by) for name, tally in tallies.items()}
        trusted = self._trusted_names(scores, {name: tally.examples for name, tally in tallies.items()})
        return {name: tallies[name] for name in trusted}

    def fit_readout(self) -> None:
        """Fit candidates from the sums of all clients and keep the best on the selection examples, once for each best round.

        The label words stay if no candidate is better, or if too few owners allow their sums to leave.

        Raises:
            TooFewClientsError: fewer clients than ``coordination.min_clients`` gave sums, but more may after a resume.
        """
        state, method = self._memory.state, self._manifest.method
        if method.readout is None or state.readout_round == state.best_round:
            return
        readouts, answers = self._noisy_readouts() if method.promises_noise else self._readouts()
        is_final = all(code.is_final for code in answers.failures.values())
        if is_final and not self._clients.are_enough(answers):
            _log.warning("too few clients allow sums for a readout (%s): the label words are used", answers.reasons)
            self._memory.keep(replace(self._memory.state, readout=None, readout_round=state.best_round))
            return
        self._clients.require(answers, "statistics")
        if method.holdout.selection == 0:  # with noise one readout is made, and the gate alone decides
            self._memory.keep(replace(self._memory.state, readout=readouts[0], readout_round=state.best_round))
            return
        temperatures = (1.0,) if method.promises_noise else TEMPERATURES
        trial = messages.EvaluateRequest(self._clients.context_id, state.best, readouts, temperatures)
        figures = zip(*(reply.tallies for reply in self._evaluations(trial).values()), strict=True)
        totals = [sum(tallies, Tally()) for tallies in figures]  # empty if no client replied
        ranks = [rank(total, method.rounds.select_by) for total in totals]
        best = trial.candidates[ranks.index(min(ranks))] if ranks else None
        zero_shot = totals[0] if totals and method.is_one_shot else self._memory.state.zero_shot
        self._memory.keep(replace(self._memory.state, readout=best, readout_round=state.best_round, zero_shot=zero_shot))

    def _readouts(self) -> tuple[tuple[Readout, ...], Participation]:
        """A readout for each penalty; none without enough clients."""
        bits = self._weight_bits if self._manifest.method.sums_only else 0
        request = messages.StatisticsRequest(self._clients.context_id, self._memory.state.best, bits)
        requests = dict.fromkeys(self._clients.names, request)
        total, answers = self._clients.total(requests, messages.StatisticsReply, self._checks.is_usable_statistics)
        return () if total is None else tuple(total.sums.solve(self._manifest.directions, self._pooled_layer)), answers

    def _noisy_readouts(self) -> tuple[tuple[Readout, ...], Participation]:
        """The readout of noisy sums; none without enough clients."""
        from ifedicl.federation.noise_plan import NoisePlan  # needs packages that other modes do not

        request = messages.NoisyStatisticsRequest(self._clients.context_id, self._memory.state.best)
        usable = self._checks.is_usable_noisy_statistics
        replies, answers = self._clients.ask_all(request, messages.NoisyStatisticsReply, usable)
        plan = NoisePlan.of(self._manifest)
        model = self._manifest.model
        matrix = projection(hidden_count(model.width, self._pooled_layer), model.width, self._manifest.method.seed)
        solved = (
            total.sums.solve(plan.deviation(request.kind, total.clients), matrix, self._pooled_layer)
            for total in replies.values()
        )
        return tuple(solved), answers  # one reply stands for all clients

    @property
    def _pooled_layer(self) -> int | None:
        """The layer of the text's mean state."""
        return self._manifest.method.pooled_layer(self._manifest.model.layers)

    @property
    def _weight_bits(self) -> int:
        """The clients probably have at most 2 to the power of it training examples, all together.

        Without rounds no step has counted them, so it follows from how many are held out. If there are more, the sum is made
        again.
        """
        state, holdout = self._memory.state, self._manifest.method.holdout
        if not self._manifest.method.is_one_shot:
            return state.weight_bits
        held_out = state.zero_shot.examples if state.zero_shot else 0
        most = held_out + _SLACK * math.sqrt(held_out) + 1
        return math.ceil(most * (1 - holdout.selection - holdout.gate) / max(holdout.selection, 1e-9)).bit_length()

    def compare(self) -> Comparison | None:
        """The chosen adapter and the raw model on the gate examples; None without a gate or without gate examples."""
        if self._manifest.method.holdout.gate == 0:
            return None
        state = self._memory.state
        request = messages.CompareRequest(self._clients.context_id, state.best, state.readout)
        replies, answers = self._clients.ask_all(request, messages.CompareReply, self._checks.is_usable_comparison)
        if not replies and set(answers.failures.values()) <= {FailureCode.NO_EXAMPLES}:
            return None
        compared = {name: reply.comparison for name, reply in replies.items()}
        gains = {name: (item.zero_shot.loss - item.adapter.loss,) for name, item in compared.items()}
        trusted = self._trusted_names(gains, {name: item.adapter.examples for name, item in compared.items()})
        # Of noisy counts there is one, which stands for all clients.
        return reduce(operator.add, (compared[name] for name in trusted)) if trusted else Comparison()

    def _trusted_names(self, scores: Mapping[str, tuple[float, ...]], examples: Mapping[str, int]) -> list[str]:
        """All clients, in order; with [robust], those with middle scores."""
        robust = self._manifest.method.robust
        return list(scores) if robust is None else trusted_clients(scores, examples, Trust(robust.liars))

    def _evaluations(self, request: messages.EvaluateRequest) -> dict[str, messages.EvaluateReply]:
        count = len(request.candidates)
        return self._clients.ask_all(request, messages.EvaluateReply, lambda reply: is_usable_evaluation(reply, count))[0]
