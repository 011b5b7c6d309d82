"""A run as a trace: one span for the run, one for each step, and its figures as gauges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from ifedicl.federation.events import Delivered, Event, RoundDone, StepStarted
from ifedicl.federation.state import Traffic
from ifedicl.tracking.telemetry import Telemetry


class Gauges:
    """A :class:`~ifedicl.tracking.figures.Tracker` that keeps each figure in a gauge ``ifedicl.run.NAME``."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def log(self, figures: Mapping[str, float], step: int, /) -> None:
        """Set the gauges."""
        for name, value in {**figures, "round": step}.items():
            self._meter.create_gauge(f"ifedicl.run.{name.replace('/', '.')}").set(value)


class RunSpans:
    """An observer of a run that makes its spans. Clients are counted, not named."""

    def __init__(self, telemetry: Telemetry, run: Span) -> None:
        """Take where spans go, and the span of the run."""
        self._tracer = telemetry.tracer
        self._context = set_span_in_context(run)
        self._failed = telemetry.meter.create_counter("ifedicl.run.step.failures", description="Clients without a usable reply")
        self._step: Span | None = None
        self._answered: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, StepStarted):
            self.end_step()
            facts = {"ifedicl.round": event.round, "ifedicl.clients": event.clients}
            self._step = self._tracer.start_span(f"step {event.step}", self._context, attributes=facts)
        elif isinstance(event, Delivered):
            self._count(event.traffic)
        elif isinstance(event, RoundDone):
            self.end_step()

    def end_step(self) -> None:
        """End the present step's span, if there is one."""
        if self._step is not None:
            self._step.set_attributes({f"ifedicl.{name}": count for name, count in self._answered.items()})
            self._step.end()
        self._step, self._answered = None, Counter()

    def _count(self, traffic: Traffic) -> None:
        self._answered.update({"bytes.down": traffic.bytes_down, "bytes.up": traffic.bytes_up})
        self._answered["failures" if traffic.failure else "answers"] += 1
        if traffic.failure is not None:
            self._failed.add(1, {"ifedicl.step": traffic.step, "ifedicl.failure": traffic.failure})


@contextmanager
def run_spans(telemetry: Telemetry, name: str) -> Iterator[RunSpans]:
    """An observer for the run of this name; its span ends with the block. Of an error its type is kept."""
    run = telemetry.tracer.start_span("run", attributes={"ifedicl.run": name})
    observer = RunSpans(telemetry, run)
    try:
        yield observer
    except BaseException as error:
        run.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        observer.end_step()
        run.end()
