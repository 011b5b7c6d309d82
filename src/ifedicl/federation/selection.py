"""Chooses the round and the readout, and opens or closes the gate, by the clients' held-out examples."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

from ifedicl.core.blend import blended
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout, hidden_count, projection
from ifedicl.core.robust import Trust, trusted_clients
from ifedicl.federation import messages
from ifedicl.federation.checkpoint import Memory
from ifedicl.federation.client_pool import ClientPool, Participation
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import FailureCode
from ifedicl.federation.readout_fit import ReadoutFit
from ifedicl.federation.reply_validation import ReplyChecks, is_usable_evaluation, rank, tally_of_all
from ifedicl.metrics import Comparison, Tally

_log = logging.getLogger(__name__)
_ODDS_ON_RAW = 10.0
"""That the raw model is better than a round, before any held-out figure."""


class Selection:
    """Chooses on the clients' selection examples, and compares with the raw model on their gate examples."""

    def __init__(self, clients: ClientPool, manifest: Manifest, memory: Memory) -> None:
        """Prepare; nothing is sent yet."""
        self._clients = clients
        self._manifest = manifest
        self._memory = memory
        self._checks = ReplyChecks(manifest)
        self._sums = ReadoutFit(clients, manifest, memory)

    def measure_zero_shot(self) -> None:
        """Evaluate the raw model on the selection examples, once for each context.

        Without rounds the label words that a readout is compared with are the raw model's, so nothing is asked here; but a
        secure sum needs to know about how many examples there are.
        """
        method = self._manifest.method
        if self._memory.state.zero_shot is None and method.holdout.selection > 0 and method.measures_first:
            by_client = self.evaluate(self._manifest.identity)
            self._memory.keep(replace(self._memory.state, zero_shot_by_client=by_client))

    def evaluate(self, coefficients: Coefficients) -> dict[str, Tally]:
        """The tallies on the selection examples of each trusted client."""
        replies = self._evaluations(messages.EvaluateRequest(self._clients.context_id, coefficients))
        tallies, by = {name: reply.tallies[0] for name, reply in replies.items()}, self._manifest.method.rounds.select_by
        scores = {name: rank(tally, by) for name, tally in tallies.items()}
        trusted = self._trusted_names(scores, {name: tally.examples for name, tally in tallies.items()})
        return {name: tallies[name] for name in trusted}

    def settle(self) -> None:
        """Go back to the raw model unless the best round is better by enough evidence, on the clients that both have.

        Its losses on the held-out examples together must be lower by ``log`` of the odds on the raw model, or, by accuracy,
        more answers must be right. A round that is taken because it is the last stays, and so does one without figures.
        """
        state, by = self._memory.state, self._manifest.method.rounds.select_by
        best = next((record for record in state.history if record.round == state.best_round), None)
        if by == "last" or best is None:
            return
        both = best.by_client.keys() & state.zero_shot_by_client.keys()
        ours, raw = (tally_of_all({name: of[name] for name in both}) for of in (best.by_client, state.zero_shot_by_client))
        if ours is None or raw is None:
            return
        gain = raw.loss_sum - ours.loss_sum
        if not (gain > math.log(_ODDS_ON_RAW) if by == "loss" else rank(ours, by) < rank(raw, by)):
            _log.warning("no round is better than the raw model by enough evidence on held-out examples: no round is used")
            self._memory.keep(replace(state, best=self._manifest.identity, best_round=0))

    def fit_readout(self) -> None:
        """Fit candidates from the sums of all clients and blend them by the selection examples, once for each best round.

        The label words stay if no candidate is better, or if too few owners allow their sums to leave.

        Raises:
            TooFewClientsError: fewer clients than ``coordination.min_clients`` gave sums, but more may after a resume.
        """
        state, method = self._memory.state, self._manifest.method
        if method.readout is None or state.readout_round == state.best_round:
            return
        readouts, answers = self._noisy_readouts() if method.promises_noise else self._sums.readouts()
        is_final = all(code.is_final for code in answers.failures.values())
        if is_final and not self._clients.are_enough(answers):
            _log.warning("too few clients allow sums for a readout (%s): the label words are used", answers.reasons)
            self._memory.keep(replace(self._memory.state, readout=None, readout_round=state.best_round))
            return
        self._clients.require(answers, "statistics")
        if method.holdout.selection == 0:  # with noise one readout is made, and the gate alone decides
            self._memory.keep(replace(self._memory.state, readout=readouts[0], readout_round=state.best_round))
            return
        trial = messages.EvaluateRequest(self._clients.context_id, state.best, readouts, *self._manifest.mixes)
        replies = self._evaluations(trial)
        totals = [sum(tallies, Tally()) for tallies in zip(*(reply.tallies for reply in replies.values()), strict=True)]
        fitted = replace(self._memory.state, readout=self._best(trial, totals), readout_round=state.best_round)
        if method.is_one_shot:
            fitted = replace(fitted, zero_shot_by_client={name: reply.tallies[0] for name, reply in replies.items()})
        self._memory.keep(fitted)

    def _best(self, trial: messages.EvaluateRequest, totals: Sequence[Tally]) -> Readout | None:
        """The readout by the figures of all candidates; None: the label words, also if no client replied."""
        if not totals:
            return None
        if not self._manifest.method.promises_noise:
            return blended(trial.readouts, [total.loss_sum for total in totals], trial.shares)
        ranks = [rank(total, "accuracy") for total in totals]  # losses have no noise and are not sent
        return trial.candidates[ranks.index(min(ranks))]

    def _noisy_readouts(self) -> tuple[tuple[Readout, ...], Participation]:
        """The readout of noisy sums; none without enough clients."""
        from ifedicl.federation.noise_plan import NoisePlan  # needs packages that other modes do not

        request = messages.NoisyStatisticsRequest(self._clients.context_id, self._memory.state.best)
        usable = self._checks.is_usable_noisy_statistics
        replies, answers = self._clients.ask_all(request, messages.NoisyStatisticsReply, usable)
        plan = NoisePlan.of(self._manifest)
        model = self._manifest.model
        matrix = projection(hidden_count(model.width, self._pooled_layers), model.width, self._manifest.method.seed)
        solved = (
            total.sums.solve(plan.deviation(request.kind, total.clients), matrix, self._pooled_layers)
            for total in replies.values()
        )
        return tuple(solved), answers  # one reply stands for all clients

    @property
    def _pooled_layers(self) -> tuple[int, ...]:
        """The layers of the text's mean states."""
        return self._manifest.method.pooled_layers(self._manifest.model.layers)

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
