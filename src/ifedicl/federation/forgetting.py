"""Removes clients' shares, or that of removed examples, from a finished run.

A sum over clients is collected anew without them, so it is the sum that never held them. Nothing is subtracted: the coordinator
keeps readout sums of all clients together only, and where it keeps one sum of all vectors a client's part of it is not known.
So global vectors, basis, readout sums and choices hold nothing of the removed text. The coefficients were moved by its
gradients: they go on from where they were, for some rounds without it, and that is not exact. The readout is of states that
they change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.core.warm_start import Start, warm_start
from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.state import Forgotten, State
from ifedicl.settings import TOGETHER, Method


@dataclass(frozen=True)
class Forgetting:
    """What a run is to forget.

    Attributes:
        stay: all clients that take part from now on.
        left: clients that take no part any more; their whole share goes.
        changed: clients that removed some of their examples; their share is taken anew.
        rounds: of calibration without the removed text; 0 for a run without rounds.
        agreed: the owners agreed that the difference of two secure sums shows the share of fewer of them than a sum may.
    """

    stay: frozenset[str]
    left: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    rounds: int = 0
    agreed: bool = False

    def check(self, state: State, method: Method) -> None:
        """Check that a run in this state can forget this.

        Raises:
            ConfigError: it cannot; the message says why and what to do.
        """
        took_part = {item.client for item in state.traffic if item.failure is None} - {TOGETHER}
        absent = took_part - self.stay - self.left - state.gone
        removed = len((self.left - state.gone) | self.changed)
        if method.promises_noise:
            raise _fault(
                "privacy.mode",
                "private",
                "open or secure",
                "Noise hides each example already, and what it spent is not given back",
            )
        if not (self.left or self.changed):
            raise _fault("client", "none", "one client or more", "Name who left (--client) or removed examples (--changed)")
        if unknown := sorted((self.left | self.changed) - took_part):
            raise _fault("client", ", ".join(unknown), ", ".join(sorted(took_part)), "Name clients that took part in the run")
        if there := sorted(self.left & self.stay):
            raise _fault("client", ", ".join(there), "clients whose text is gone", "Remove them from [data] clients first")
        if absent or (gone := sorted(self.changed - self.stay)):
            missing = sorted(absent) if absent else gone
            raise _fault(
                "data.clients",
                f"{', '.join(missing)} missing",
                "all clients that stay",
                "Bring them back, or name them as --client too",
            )
        if state.best_round is None or not (state.is_finished or state.stale):
            raise _fault(
                "run",
                f"{state.round} of {state.last_round} rounds",
                "a finished run",
                "Finish it first: resume it, or, if it was forgetting, give the same command as before",
            )
        if method.is_one_shot and self.rounds:
            raise _fault(
                "rounds", str(self.rounds), "0 for a run without rounds", "Leave it out: all of such an adapter is exact"
            )
        if not method.is_one_shot and self.rounds < 1:
            raise _fault("rounds", str(self.rounds), "1 or more", "The coefficients were moved by the removed text, too")
        if method.privacy is not None and method.sums_only and not self.agreed and removed < method.privacy.min_survivors:
            raise _fault(
                "client",
                f"{removed} of a secure sum",
                f"privacy.min_survivors, {method.privacy.min_survivors}, or more at once",
                "The sum with them and the sum without them differ by their share alone, and a coordinator that kept the first "
                "can subtract. Wait for others to leave, or give --agreed if the owners concerned accept it",
            )

    def note(self, round_number: int) -> Forgotten:
        """What a run with this number of completed rounds keeps about it."""
        return Forgotten(round_number, tuple(sorted(self.left)), tuple(sorted(self.changed)), self.rounds)

    def has_begun(self, state: State) -> bool:
        """Whether it is what the present schedule of the run in this state forgets, or has forgotten."""
        return state.forgotten[-1:] == (self.note(state.phase_start),)

    def begun(self, state: State, initial: Coefficients) -> State:
        """The state without the shares, at the start of another schedule; nothing is collected yet.

        ``initial`` are the coefficients of a cold start, in place of those that :meth:`starter` gives.
        """
        gone = self.left | self.changed
        keeps = TOGETHER not in state.client_vectors  # one sum of all: no client's part of it is known

        def kept(by_client: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in by_client.items() if keeps and name not in gone}

        history = tuple(
            replace(record, by_client={name: tally for name, tally in record.by_client.items() if name not in gone})
            for record in state.history
        )
        return replace(
            state,
            phase_start=state.round,
            phase_rounds=self.rounds,
            phases=state.phases + 1,
            coefficients=initial,
            best=initial,
            best_round=None,
            stale=0,
            vectors_due=True,
            client_vectors=kept(state.client_vectors),
            cursors=kept(state.cursors),
            dtypes=kept(state.dtypes),
            context=None,
            moments=None,
            readout=None,
            readout_round=None,
            zero_shot_by_client={},
            fit=None,
            history=history,
            forgotten=(*state.forgotten, self.note(state.round)),
        )

    def starter(self, state: State, context: Context, initial: Coefficients) -> Start | None:
        """A warm start from ``state``, before the forgetting, in a new context."""
        if state.context is None:
            return None
        return warm_start(state.best, state.context, initial, context, self.rounds)


def _fault(field: str, received: str, allowed: str, remedy: str) -> ConfigError:
    return ConfigError("forget", [Fault(field, received, allowed, f"{remedy}.")])
