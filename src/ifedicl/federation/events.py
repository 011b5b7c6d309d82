"""The events of a run, for its observers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ifedicl.federation.state import RoundRecord, State, Traffic


@dataclass(frozen=True)
class Begun:
    """The run begins, from this state or, if new, from none."""

    state: State | None


@dataclass(frozen=True)
class StepStarted:
    """Requests of one kind are sent."""

    step: str
    round: int
    clients: int


@dataclass(frozen=True)
class Delivered:
    """One client has replied or failed."""

    traffic: Traffic


@dataclass(frozen=True)
class RoundDone:
    """A round is over and its checkpoint written."""

    record: RoundRecord
    rounds: int


Event: TypeAlias = Begun | StepStarted | Delivered | RoundDone


def ignore(event: Event) -> None:
    """An observer that does nothing."""


def each(*observers: Callable[[Event], None]) -> Callable[[Event], None]:
    """One observer that calls all of these, in order."""

    def observe(event: Event) -> None:
        for observer in observers:
            observer(event)

    return observe
