"""Traces and metrics over OpenTelemetry. Extra ``telemetry``.

Where they go is said by OpenTelemetry's own variables: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_HEADERS``,
``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER`` and others. No global provider is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import Tracer

from ifedicl.version import __version__


@dataclass(frozen=True)
class Telemetry:
    """Makes spans and metrics."""

    tracer: Tracer
    meter: Meter


@contextmanager
def telemetry(service: str, processor: SpanProcessor, readers: Sequence[MetricReader]) -> Iterator[Telemetry]:
    """Spans for a processor and metrics for readers, which are flushed at the end.

    Args:
        service: its name, unless ``OTEL_SERVICE_NAME`` gives another.
        processor: of spans.
        readers: of metrics.
    """
    named = os.environ.get("OTEL_SERVICE_NAME", service)
    resource = Resource.create({"service.name": named, "service.version": __version__})
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(processor)
    meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    try:
        yield Telemetry(tracers.get_tracer("ifedicl", __version__), meters.get_meter("ifedicl", __version__))
    finally:
        tracers.shutdown()
        meters.shutdown()


@contextmanager
def otlp(service: str) -> Iterator[Telemetry]:
    """Spans and metrics that a collector gets over OTLP/HTTP. One that does not answer costs log lines, and nothing else."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    readers = [PeriodicExportingMetricReader(OTLPMetricExporter())]
    with telemetry(service, BatchSpanProcessor(OTLPSpanExporter()), readers) as made:
        yield made
