"""Runs that are stopped on the way, as a kill would."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from ifedicl.federation.events import Event, RoundDone


class StopError(Exception):
    """The run was stopped by its test."""


def stop_when(condition: Callable[[Event], bool]) -> Callable[[Event], None]:
    """An observer that stops the run at the first event of which ``condition`` is true."""

    def observer(event: Event) -> None:
        if condition(event):
            raise StopError

    return observer


def stop_behind(count: int) -> Callable[[Event], None]:
    """An observer that stops the run at the event behind so many."""
    numbers = itertools.count(1)
    return stop_when(lambda event: next(numbers) > count)


def stop_after(number: int) -> Callable[[Event], None]:
    """An observer that stops the run once this round is done."""
    return stop_when(lambda event: isinstance(event, RoundDone) and event.record.round == number)
