"""The state of a coordinator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.server_optimizer import Moments
from ifedicl.core.subspace import Context
from ifedicl.core.units import Units
from ifedicl.core.vectors import Array64, ContextVectors
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Tally
from ifedicl.settings import TOGETHER


@dataclass(frozen=True, slots=True)
class Traffic:
    """The cost of one step for one client.

    Attributes:
        step: kind of the request.
        round: completed rounds at that time.
        bytes_down: to the client.
        bytes_up: from the client.
        seconds: from request to reply.
        failure: the code, if there was no usable reply.
        carrier_bytes: bytes that the carrier added to both messages, if known.
    """

    client: str
    step: str
    round: int
    bytes_down: int
    bytes_up: int
    seconds: float
    failure: str | None = None
    carrier_bytes: int = 0


@dataclass(frozen=True)
class Fit:
    """Sums of all clients on the way to a readout.

    Attributes:
        round: the best round, in whose model they were made.
        sums: the readout's, with the products of the refinements so far.
        refined: ``(F, j)``, the directions of these refinements; None before the first.
        refinements: how many have been asked for.
    """

    round: int
    sums: ReadoutSums
    refined: Array64 | None = None
    refinements: int = 0

    @classmethod
    def of(cls, numbers: Sequence[int], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """From round, refinements and clients, and :attr:`arrays`."""
        round_number, refinements, clients = numbers
        units, refined = Units(arrays["offset"], arrays["scale"]), arrays.get("refined")
        own = {name: array.astype(np.float64) for name, array in arrays.items() if name not in ("offset", "scale", "refined")}
        sums = ReadoutSums(**own, units=units, clients=clients)
        return cls(round_number, sums, refined, refinements)

    @property
    def arrays(self) -> dict[str, Array64]:
        """All arrays by name."""
        units = {"offset": self.sums.units.offset, "scale": self.sums.units.scale}
        refined = {} if self.refined is None else {"refined": self.refined}
        return self.sums.arrays | units | refined


@dataclass(frozen=True)
class RoundRecord:
    """One round.

    Attributes:
        round: number of completed rounds; 0 is the state before the first.
        clients: those with a usable update.
        train_loss: mean over those clients, weighted as their coefficients are; None for round 0.
        by_client: on each client's selection examples; empty if this round was not evaluated.
    """

    round: int
    clients: tuple[str, ...]
    train_loss: float | None
    by_client: Mapping[str, Tally] = field(default_factory=dict)

    @property
    def held_out(self) -> Tally | None:
        """On all clients' selection examples; None if this round was not evaluated."""
        return sum(self.by_client.values(), Tally()) if self.by_client else None

    @property
    def worst(self) -> str | None:
        """The client with the lowest accuracy, then the highest loss, on its selection examples; None in secure mode."""
        single = [name for name in self.by_client if name != TOGETHER]
        return min(single, key=lambda name: (self.by_client[name].accuracy, -self.by_client[name].loss), default=None)


@dataclass(frozen=True)
class Forgotten:
    """One removal of shares.

    Attributes:
        round: completed rounds before it.
        left: names of the clients that left.
        changed: names of those that removed examples.
        more_rounds: of calibration without the removed text.
    """

    round: int
    left: tuple[str, ...]
    changed: tuple[str, ...]
    more_rounds: int

    @property
    def facts(self) -> dict[str, int]:
        """For provenance and ledgers: numbers, no name."""
        numbers = {"clients_left": len(self.left), "clients_changed": len(self.changed)}
        return {"round": self.round, **numbers, "more_rounds": self.more_rounds}


@dataclass(frozen=True)
class State:
    """All that a coordinator needs to resume.

    Attributes:
        run: digest of task, method and model: a checkpoint belongs to one run.
        round: completed rounds.
        phase_start: the round at which the present schedule began.
        phase_rounds: its number of rounds.
        phases: the number of schedules so far, with the present one.
        coefficients: after ``round`` rounds.
        best_round: the round chosen so far; None before the first evaluation; 0: the raw model.
        best: its coefficients.
        stale: evaluations since the best one.
        vectors_due: whether stage 1 of the present phase is still to do.
        client_vectors: means and counts of each client, or of all together if their sum is enough.
        cursors: from each client's last vectors reply.
        dtypes: that each client's model computes in.
        heads: of the clients' ledgers, from their last replies.
        context: global vectors and basis; None before stage 2a.
        moments: of the server's optimizer; None if it only averages.
        readout: of the best round; None before it is fitted, or if the label words do better.
        readout_round: the best round when it was fitted.
        fit: sums that a readout is being made of; None before the first, and in private mode.
        zero_shot_by_client: the raw model on each client's selection examples.
        history: one record a round.
        traffic: every exchange.
        forgotten: removals of shares, in order.
    """

    run: str
    round: int
    phase_start: int
    phase_rounds: int
    coefficients: Coefficients
    best: Coefficients
    phases: int = 1
    best_round: int | None = None
    stale: int = 0
    vectors_due: bool = True
    client_vectors: Mapping[str, ContextVectors] = field(default_factory=dict)
    cursors: Mapping[str, str] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)
    context: Context | None = None
    moments: Moments | None = None
    readout: Readout | None = None
    readout_round: int | None = None
    fit: Fit | None = None
    zero_shot_by_client: Mapping[str, Tally] = field(default_factory=dict)
    history: tuple[RoundRecord, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    forgotten: tuple[Forgotten, ...] = ()

    @property
    def zero_shot(self) -> Tally | None:
        """The raw model on all clients' selection examples; None before that is measured."""
        return sum(self.zero_shot_by_client.values(), Tally()) if self.zero_shot_by_client else None

    @property
    def gone(self) -> frozenset[str]:
        """Names of the clients that left at some time."""
        return frozenset(name for item in self.forgotten for name in item.left)

    @property
    def last_round(self) -> int:
        """The round with which the present schedule ends."""
        return self.phase_start + self.phase_rounds

    @property
    def weight_bits(self) -> int:
        """The clients have at most 2 to the power of it examples, all together, by their context vectors."""
        return max(0, sum(vectors.examples for vectors in self.client_vectors.values()) - 1).bit_length()

    @property
    def is_finished(self) -> bool:
        """Whether the present schedule is at its end."""
        return self.round >= self.last_round

    def ended(self) -> State:
        """The same, with the present schedule at its end."""
        return replace(self, phase_rounds=self.round - self.phase_start)

    def with_more_rounds(self, rounds: int) -> State:
        """The same at the start of another schedule, which goes on from the best round."""
        return replace(
            self,
            phase_start=self.round,
            phase_rounds=rounds,
            phases=self.phases + 1,
            coefficients=self.best,
            moments=None,  # they belong to the coefficients of the last round, not to those of the best one
            stale=0,
            vectors_due=True,  # if the vectors change, no earlier round can be chosen any more
        )

    def with_best(self) -> State:
        """The same, with the present round as the best so far."""
        return replace(self, best=self.coefficients, best_round=self.round, stale=0)
