"""OpenTelemetry of a server: a span for each request, and metrics. Routes, names of adapters and counts, never a text."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.trace import SpanKind, Status, StatusCode, get_current_span, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ifedicl.tracking.telemetry import Telemetry

_CALLER = (b"traceparent", b"tracestate")


class Traces:
    """A :class:`~ifedicl.serve.meters.Watcher` that counts for OpenTelemetry."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Make the instruments."""
        meter = telemetry.meter
        self.tracer = telemetry.tracer
        self._seconds = meter.create_histogram("http.server.request.duration", "s", "From a request's head to its answer")
        self._texts = meter.create_counter("ifedicl.texts", "{text}", "Texts labelled")
        self._rows = meter.create_histogram("ifedicl.pass.rows", "{row}", "Rows of a forward pass")
        self._passes = meter.create_histogram("ifedicl.pass.duration", "s", "Seconds of a forward pass")

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._seconds.record(seconds, {"http.route": route, "http.response.status_code": status})

    def labelled(self, adapter: str, texts: int) -> None:
        """Count labelled texts, and name the adapter in the request's span."""
        self._texts.add(texts, {"ifedicl.adapter": adapter})
        get_current_span().set_attributes({"ifedicl.adapter": adapter, "ifedicl.texts": texts})

    def passed(self, rows: int, seconds: float) -> None:
        """Count a forward pass."""
        self._rows.record(rows)
        self._passes.record(seconds)


@dataclass(frozen=True, eq=False)
class TracedRequests:
    """Middleware, outermost: a span for each request, within the caller's trace if it names one (``traceparent``)."""

    app: ASGIApp
    traces: Traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        caller = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _CALLER}
        context = TraceContextTextMapPropagator().extract(caller)
        span = self.traces.tracer.start_span(scope["method"], context, SpanKind.SERVER)

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(Status(StatusCode.ERROR))
            await send(message)

        try:
            with use_span(span, record_exception=False):
                await self.app(scope, receive, answered)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            span.update_name(f"{scope['method']} {route}")
            span.set_attributes({"http.request.method": scope["method"], "http.route": route})
            span.end()
