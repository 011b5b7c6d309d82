"""One round of stage 2b: where the clients' examples take the coefficients (paper Eq. 6-7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ifedicl.core.aggregation import GradientSum, average_coefficients
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.robust import Trust, robust_coefficients
from ifedicl.core.schedules import SCHEDULES
from ifedicl.core.server import Moments, stepped
from ifedicl.core.vectors import Array32
from ifedicl.federation.asking import Clients
from ifedicl.federation.checkpoint import State
from ifedicl.federation.checks import Checks
from ifedicl.federation.messages import GradientReply, GradientRequest, UpdateReply, UpdateRequest
from ifedicl.settings import Method, ServerSettings


@dataclass(frozen=True)
class Move:
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


def along_updates(clients: Clients, cohort: Sequence[str], state: State, checks: Checks) -> Move:
    """The mean of the clients' own coefficients, or a step of the server's optimizer in its direction.

    Raises:
        TooFewClientsError: fewer usable updates than ``rounds.min_clients``.
    """
    method = checks.assignment.method
    request = UpdateRequest(clients.context_id, state.round, state.phase_start, state.phase_rounds, state.coefficients)
    replies, failures = clients.ask(dict.fromkeys(cohort, request), UpdateReply, checks.is_usable_update)
    clients.require(replies, failures, "update")
    mean = _agreed(list(replies.values()), state.coefficients, method)
    # Of what clients tell, and liars may tell any.
    loss = float((np.mean if method.robust is None else np.median)([reply.loss for reply in replies.values()]))
    if method.server is None:
        return Move(mean, None, tuple(replies), loss)
    back = {name: array - mean.arrays[name] for name, array in state.coefficients.arrays.items()}
    return Move(*_step(state, back, method.server), tuple(replies), loss)


def _agreed(replies: Sequence[UpdateReply], before: Coefficients, method: Method) -> Coefficients:
    """One out of many: their mean, or what a minority of liars cannot steer."""
    updates, robust = [reply.coefficients for reply in replies], method.robust
    if robust is not None:
        return robust_coefficients(before, updates, robust.updates, Trust(robust.liars, robust.bound))
    return average_coefficients(updates, [reply.examples for reply in replies], method.rounds.weighting)


def along_gradient(clients: Clients, cohort: Sequence[str], state: State, checks: Checks) -> Move:
    """A step of the server's optimizer on the gradient of this round's examples: the same whoever holds them.

    The sum is divided by how many examples a round draws on average, not by how many it drew: a fixed number.

    Raises:
        TooFewClientsError: fewer usable sums than ``rounds.min_clients``.
    """
    method = checks.assignment.method
    server = method.server
    assert server is not None
    request = GradientRequest(clients.context_id, state.round, state.coefficients)
    replies, failures = clients.ask(dict.fromkeys(cohort, request), GradientReply, checks.is_usable_gradient)
    clients.require(replies, failures, "gradient")
    sums = reduce(GradientSum.combine, [reply.sums for reply in replies.values()])
    expected = server.draw * sum(vectors.examples for vectors in state.client_vectors.values())
    gradient = {name: array / np.float32(expected) for name, array in sums.arrays.items()}
    loss = sums.loss / sums.examples if sums.examples else None
    return Move(*_step(state, gradient, server, method.calibration.weight_decay), tuple(replies), loss)


def _step(
    state: State, direction: Mapping[str, Array32], server: ServerSettings, decay: float = 0.0
) -> tuple[Coefficients, Moments]:
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
