"""Progress bars on standard error; nothing is drawn if it is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ifedicl.federation.events import Delivered, Event, RoundDone, StepStarted

LOADING = "loading the model (a GGUF file is converted the first time, which takes half a minute)"
STEPS: Mapping[str, str] = {
    "job": "the job to clients",
    "vectors": "stage 1: context vectors",
    "context": "stage 2a: global vectors to clients",
    "update": "calibrating",
    "gradient": "gradients",
    "evaluate": "held-out examples",
    "statistics": "sums for the readout",
    "noisy_statistics": "noisy sums for the readout",
    "compare": "the gate",
}


@contextmanager
def bars() -> Iterator[Progress]:
    """A rich progress display that draws nothing if standard error is not a terminal."""
    console = Console(stderr=True, markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """A spinner for work of unknown length."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        yield
        return
    with console.status(name):
        yield


@contextmanager
def federation_bars(name: str, rounds: int) -> Iterator[Callable[[Event], None]]:
    """An observer that draws a federation: one bar for the rounds, one for the clients of the present step."""
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


@contextmanager
def counted(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for ``total`` items; call the yielded function with the number just done."""
    with bars() as progress:
        yield partial(progress.advance, progress.add_task(name, total=total))


def _described(name: str, event: RoundDone) -> str:
    held_out = event.record.held_out
    return name if held_out is None else f"{name} (held-out loss {held_out.loss:.3f}, accuracy {held_out.accuracy:.1%})"
