"""Progress on standard error: bars on a terminal; elsewhere plain lines, so that a log shows that the work goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ifedicl.federation.events import Delivered, Event, RoundDone, StepStarted

LOADING = "loading the model (a GGUF file is converted the first time, which takes half a minute)"
SECONDS_BETWEEN = 30.0
"""Between two lines of one count."""
STEPS: Mapping[str, str] = {
    "job": "the job to clients",
    "vectors": "stage 1: context vectors",
    "context": "stage 2a: global vectors to clients",
    "update": "calibrating",
    "gradient": "gradients",
    "evaluate": "held-out examples",
    "statistics": "sums for the readout",
    "products": "more sums for the readout",
    "noisy_statistics": "noisy sums for the readout",
    "compare": "the gate",
}


@contextmanager
def bars() -> Iterator[Progress]:
    """A rich progress display that draws nothing if standard error is not a terminal."""
    console = Console(stderr=True, markup=False)
    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *times)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """A spinner for work of unknown length; elsewhere than on a terminal its name."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        say(name)
        yield
        return
    with console.status(name):
        yield


@contextmanager
def federation_bars(name: str, rounds: int) -> Iterator[Callable[[Event], None]]:
    """An observer that draws a federation: one bar for the rounds, one for the clients of the present step.

    Elsewhere than on a terminal it writes a line when the work begins, and one a round.
    """
    if not Console(stderr=True).is_terminal:
        say(f"{name}: {LOADING}")
        yield RoundLines(name)
        return
    with bars() as progress:
        whole = progress.add_task(name, total=rounds)
        step = progress.add_task("starting", total=None)

        def observe(event: Event) -> None:
            if isinstance(event, StepStarted):
                progress.update(step, description=STEPS[event.step], total=event.clients, completed=0)
            elif isinstance(event, Delivered):
                progress.update(step, total=max(progress.tasks[step].total or 0, progress.tasks[step].completed + 1), advance=1)
            elif isinstance(event, RoundDone):
                progress.update(whole, completed=event.record.round, total=event.rounds, description=_described(name, event))

        yield observe


class RoundLines:
    """An observer that writes a line a round: time, losses, accuracy, bytes of all clients, minutes left."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the run's name; ``clock`` gives seconds."""
        self._name = name
        self._clock = clock
        self._bytes = 0
        self._first: tuple[int, float] | None = None  # rounds that were complete when the first one began here, and when

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, StepStarted):
            if self._first is None and event.step in ("update", "gradient"):
                self._first = event.round, self._clock()
            if event.step in ("vectors", "statistics", "compare"):
                say(f"{self._name}: {STEPS[event.step]}, {event.clients} clients")
        elif isinstance(event, Delivered):
            self._bytes += event.traffic.bytes_up + event.traffic.bytes_down
        elif isinstance(event, RoundDone):
            say(f"{self._name}: {', '.join(self._facts(event))}")

    def _facts(self, event: RoundDone) -> Iterator[str]:
        record = event.record
        yield f"round {record.round} of {event.rounds}"
        if record.train_loss is not None:
            yield f"training loss {record.train_loss:.3f}"
        if record.held_out is not None:
            yield f"held-out loss {record.held_out.loss:.3f}, accuracy {record.held_out.accuracy:.1%}"
        yield f"{self._bytes / 1e3:,.0f} KB so far"
        if self._first is not None and self._first[0] < record.round < event.rounds:
            taken = (self._clock() - self._first[1]) / (record.round - self._first[0])
            yield f"about {duration(taken * (event.rounds - record.round))} left"


@contextmanager
def counted(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for ``total`` items; call the yielded function with the number just done.

    Elsewhere than on a terminal a line every half minute.
    """
    if not Console(stderr=True).is_terminal:
        yield CountLines(name, total)
        return
    with bars() as progress:
        yield partial(progress.advance, progress.add_task(name, total=total))


class CountLines:
    """Counts items, and writes a line at most every :data:`SECONDS_BETWEEN`."""

    def __init__(self, name: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Take what is counted and how many there are; ``clock`` gives seconds."""
        self._name, self._total, self._clock = name, total, clock
        self._done = 0
        self._began = self._said = clock()

    def __call__(self, count: int) -> None:
        """Take the number of items just done."""
        self._done += count
        now = self._clock()
        if now - self._said >= SECONDS_BETWEEN and 0 < self._done < self._total:
            self._said = now
            left = (now - self._began) / self._done * (self._total - self._done)
            say(f"{self._name}: {self._done} of {self._total}, about {duration(left)} left")


def say(line: str) -> None:
    """Write a line to standard error, with the time of day, at once."""
    if sys.stderr is None:
        return
    with suppress(OSError):  # the reader of the log has gone, which is no reason to end a run
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words, as minutes or hours where they are many."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _described(name: str, event: RoundDone) -> str:
    held_out = event.record.held_out
    return name if held_out is None else f"{name} (held-out loss {held_out.loss:.3f}, accuracy {held_out.accuracy:.1%})"
