"""One round of stage 2b: new coefficients from the clients' examples (paper Eq. 6-7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.robust import Trust, robust_coefficients
from ifedicl.core.schedules import cosine
from ifedicl.core.server_optimizer import Moments, stepped
from ifedicl.core.vectors import Array32
from ifedicl.federation.client_pool import ClientPool, Participation
from ifedicl.federation.messages import GradientReply, GradientRequest, Request, UpdateReply, UpdateRequest
from ifedicl.federation.reply_sums import Total
from ifedicl.federation.reply_validation import ReplyChecks
from ifedicl.federation.state import State
from ifedicl.settings import RobustSettings, ServerSettings

_MOMENTUM = 0.9
"""At the server: what is kept of earlier rounds' direction."""


@dataclass(frozen=True)
class RoundUpdate:
    """The result of a round.

    Attributes:
        coefficients: the new ones.
        moments: of the server's optimizer; None if it only averages.
        clients: those with a usable reply.
        loss: mean training loss in nats; None if there were no examples.
    """

    coefficients: Coefficients
    moments: Moments | None
    clients: tuple[str, ...]
    loss: float | None


def averaged_update(clients: ClientPool, cohort: Sequence[str], state: State, checks: ReplyChecks) -> RoundUpdate:
    """The mean of the clients' coefficients, or a step of the server's optimizer towards it.

    Raises:
        TooFewClientsError: fewer usable updates than ``coordination.min_clients``.
    """
    method = checks.manifest.method
    schedule = state.round, state.phase_start, state.phase_rounds
    request = UpdateRequest(clients.context_id, *schedule, state.coefficients, state.weight_bits if method.sums_only else 0)
    requests = dict.fromkeys(cohort, request)
    if method.robust is None:
        mean, answers = _mean(clients, requests, checks)
    else:
        mean, answers = _robust_mean(clients, requests, checks, state.coefficients, method.robust)
    if method.server is None:
        return RoundUpdate(mean.coefficients, None, answers.names, mean.loss)
    back = {name: array - mean.coefficients.arrays[name] for name, array in state.coefficients.arrays.items()}
    return RoundUpdate(*_step(state, back, method.server), answers.names, mean.loss)


def _mean(clients: ClientPool, requests: Mapping[str, Request], checks: ReplyChecks) -> tuple[UpdateReply, Participation]:
    """``Λ = Σ w_k Λ_k / Σ w_k`` (paper Eq. 7). A total weights by examples; uniform weights count one example each."""
    total, uniform = Total(UpdateReply), checks.manifest.method.weighting == "uniform"

    def take(_name: str, reply: UpdateReply) -> None:
        total.add(replace(reply, examples=1) if uniform else reply)

    answers = clients.collect(requests, UpdateReply, checks.is_usable_update, take)
    clients.require(answers, "update")
    mean = total.reply
    assert mean is not None
    return mean, answers


def _robust_mean(
    clients: ClientPool, requests: Mapping[str, Request], checks: ReplyChecks, before: Coefficients, robust: RobustSettings
) -> tuple[UpdateReply, Participation]:
    """An aggregate that a minority of lying clients cannot steer."""
    replies, answers = clients.ask(requests, UpdateReply, checks.is_usable_update)
    clients.require(answers, "update")
    updates, trust = [reply.coefficients for reply in replies.values()], Trust(robust.liars)
    loss = float(np.median([reply.loss for reply in replies.values()]))
    return UpdateReply(robust_coefficients(before, updates, robust.rule, trust), len(updates), loss), answers


def gradient_update(clients: ClientPool, cohort: Sequence[str], state: State, checks: ReplyChecks) -> RoundUpdate:
    """A step of the server's optimizer on the gradient of this round's examples, the same for any split over clients.

    The sum is divided by the expected number of drawn examples, which is the same in each round, not by the actual number.

    Raises:
        TooFewClientsError: fewer usable sums than ``coordination.min_clients``.
    """
    method = checks.manifest.method
    server = method.server
    assert server is not None
    request = GradientRequest(clients.context_id, state.round, state.coefficients)
    total, answers = clients.total(dict.fromkeys(cohort, request), GradientReply, checks.is_usable_gradient)
    clients.require(answers, "gradient")
    assert total is not None
    sums = total.sums
    expected = server.draw * sum(vectors.examples for vectors in state.client_vectors.values())
    gradient = {name: array / np.float32(expected) for name, array in sums.arrays.items()}
    loss = sums.loss / sums.examples if sums.examples else None
    return RoundUpdate(*_step(state, gradient, server, method.calibration.weight_decay), answers.names, loss)


def _step(
    state: State, direction: Mapping[str, Array32], server: ServerSettings, decay: float = 0.0
) -> tuple[Coefficients, Moments]:
    progress = (state.round - state.phase_start) / state.phase_rounds
    return stepped(
        state.coefficients,
        direction,
        state.moments or Moments.none(state.coefficients),
        server.optimizer,
        rate=server.learning_rate * cosine(progress),
        momentum=_MOMENTUM,
        decay=decay,
    )
