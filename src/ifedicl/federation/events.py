"""What a coordinator tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ifedicl.federation.state import RoundRecord, State, Traffic


@dataclass(frozen=True)
class Begun:
    """Nothing is sent yet; a resumed run goes on from this state, a new one from none."""

    state: State | None


@dataclass(frozen=True)
class StepStarted:
    """Requests of one kind are on their way."""

    step: str
    round: int
    clients: int


@dataclass(frozen=True)
class Delivered:
    """One client has answered, or failed to."""

    traffic: Traffic


@dataclass(frozen=True)
class RoundDone:
    """A round is over and its checkpoint written."""

    record: RoundRecord
    rounds: int


Event: TypeAlias = Begun | StepStarted | Delivered | RoundDone


def ignore(event: Event) -> None:
    """The observer of those who do not watch."""


def each(*observers: Callable[[Event], None]) -> Callable[[Event], None]:
    """One observer that tells all of these, in order."""

    def observe(event: Event) -> None:
        for observer in observers:
            observer(event)

    return observe
