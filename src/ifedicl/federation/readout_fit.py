"""Collects the sums that a readout is made of, and refines them, with a checkpoint after each step."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial

from ifedicl.core.readout import Readout
from ifedicl.core.readout_sums import next_refinement
from ifedicl.core.sketch import Directions
from ifedicl.federation import messages
from ifedicl.federation.checkpoint import Memory
from ifedicl.federation.client_pool import ClientPool, Participation
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.reply_validation import ReplyChecks
from ifedicl.federation.state import Fit

_log = logging.getLogger(__name__)
_SLACK = 2.0
"""The number of training examples is estimated from that of held-out ones and so many of its standard deviations."""


class ReadoutFit:
    """The steps from the best round's model to one readout for each penalty, without noise."""

    def __init__(self, clients: ClientPool, manifest: Manifest, memory: Memory) -> None:
        """Prepare; nothing is sent yet."""
        self._clients = clients
        self._manifest = manifest
        self._memory = memory
        self._checks = ReplyChecks(manifest)

    def readouts(self) -> tuple[tuple[Readout, ...], Participation]:
        """A readout for each penalty, and who gave the sums; none without enough clients."""
        state = self._memory.state
        answers = Participation(self._clients.names, {})
        if state.fit is None or state.fit.round != state.best_round:
            first, answers = self._first()
            if first is None or not self._clients.are_enough(answers):
                return (), answers
            self._memory.keep(replace(self._memory.state, fit=first))
        while (fit := self._fit).refinements < self._manifest.method.refinements:
            refined = self._refined(fit)  # adds to the state's traffic
            self._memory.keep(replace(self._memory.state, fit=refined))
        readouts = fit.sums.solve(self._directions(fit), self._layers, has_intercept=bool(self._layers))
        return tuple(readouts), answers

    def _first(self) -> tuple[Fit | None, Participation]:
        """The sums with the directions that all sides know; None if they count no example."""
        state = self._memory.state
        assert state.best_round is not None
        bits = self._expected_bits if self._manifest.method.sums_only else 0
        request = messages.StatisticsRequest(self._clients.context_id, state.best, bits)
        requests = dict.fromkeys(self._clients.names, request)
        total, answers = self._clients.total(requests, messages.StatisticsReply, self._checks.is_usable_statistics)
        return None if total is None else Fit(state.best_round, total.sums), answers

    def _refined(self, fit: Fit) -> Fit:
        """After one more refinement; the same sums if too few clients answer it, or if nothing is left to refine."""
        known, number = self._directions(fit), fit.refinements + 1
        asked = next_refinement(fit.sums, known, self._manifest.columns, len(self._layers), fit.refinements)
        if not asked.directions.shape[1]:
            return replace(fit, refinements=self._manifest.method.refinements)
        bits = max(1, (fit.sums.examples - 1).bit_length()) if self._manifest.method.sums_only else 0
        request = messages.ProductsRequest(self._clients.context_id, self._memory.state.best, asked, bits)
        usable = partial(self._checks.is_usable_products, asked=asked)
        total, answers = self._clients.total(dict.fromkeys(self._clients.names, request), messages.ProductsReply, usable)
        if total is None or not self._clients.are_enough(answers):
            _log.warning("too few clients give products for a refinement (%s): the readout goes without", answers.reasons)
            return replace(fit, refinements=self._manifest.method.refinements)
        refined = known.with_more(asked.directions).refined
        return Fit(fit.round, fit.sums.refined(asked, total.sums), refined, number)

    @property
    def _layers(self) -> tuple[int, ...]:
        return self._manifest.method.pooled_layers(self._manifest.model.layers)

    def _directions(self, fit: Fit) -> Directions:
        return replace(self._manifest.directions, refined=fit.refined)

    @property
    def _fit(self) -> Fit:
        fit = self._memory.state.fit
        assert fit is not None
        return fit

    @property
    def _expected_bits(self) -> int:
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
