"""Metrics for Prometheus at ``/metrics``: names of adapters and counts, never a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Watcher(Protocol):
    """Is told what a server does. Any thread may call it."""

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request to a path of this template was answered."""

    def labelled(self, adapter: str, texts: int) -> None:
        """Texts were labelled."""

    def passed(self, rows: int, seconds: float) -> None:
        """A forward pass has ended."""


class Meters:
    """The metrics of one server."""

    def __init__(self, also: Sequence[Watcher] = ()) -> None:
        """Start at zero; ``also`` are told the same."""
        self._also = also
        self._registry = CollectorRegistry()
        self._requests = Counter("ifedicl_requests", "Answers", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "ifedicl_request_seconds",
            "From a request's head to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._texts = Counter("ifedicl_texts", "Texts labelled", ["adapter"], registry=self._registry)
        self._rows = Histogram("ifedicl_pass_rows", "Rows of a forward pass", buckets=_ROWS, registry=self._registry)
        self._passes = Histogram("ifedicl_pass_seconds", "Seconds of a forward pass", buckets=_SECONDS, registry=self._registry)
        memory = Gauge("ifedicl_resident_bytes", "Memory of the process", registry=self._registry)
        memory.set_function(lambda: psutil.Process().memory_info().rss)

    def watch(self, waiting: Callable[[], float], adapters: Callable[[], float]) -> None:
        """Add the metrics that are read at each scrape."""
        Gauge("ifedicl_waiting_texts", "Texts that wait or are in work", registry=self._registry).set_function(waiting)
        Gauge("ifedicl_adapters", "Served adapters", registry=self._registry).set_function(adapters)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        for watcher in self._also:
            watcher.answered(route, status, seconds)

    def labelled(self, adapter: str, texts: int) -> None:
        """Count labelled texts."""
        self._texts.labels(adapter).inc(texts)
        for watcher in self._also:
            watcher.labelled(adapter, texts)

    def passed(self, rows: int, seconds: float) -> None:
        """Count a forward pass."""
        self._rows.observe(rows)
        self._passes.observe(seconds)
        for watcher in self._also:
            watcher.passed(rows, seconds)

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self._registry)
