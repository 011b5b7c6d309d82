"""What a server tells OpenTelemetry: spans and metrics with routes and counts, never a text, a key or a caller's address."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ifedicl.serve.answering import ServerState
from ifedicl.serve.api_keys import Keys, new_key
from ifedicl.serve.app import application
from ifedicl.serve.meters import Meters
from ifedicl.serve.traces import Traces
from ifedicl.tracking.telemetry import telemetry

SECRET = "Ilsebill Quandt"


class Told:
    """What one server has told."""

    def __init__(self, traces: Traces, spans: InMemorySpanExporter, metrics: InMemoryMetricReader) -> None:
        self.traces, self.spans, self.metrics = traces, spans, metrics

    def points(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """Attributes and value of each point, by metric; of a histogram its count."""
        data = self.metrics.get_metrics_data()
        assert data is not None
        return {
            metric.name: [
                (dict(point.attributes or {}), getattr(point, "value", None) or getattr(point, "count", None))
                for point in metric.data.data_points
            ]
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def told() -> Iterator[Told]:
    spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
    with telemetry("test", SimpleSpanProcessor(spans), [metrics]) as made:
        yield Told(Traces(made), spans, metrics)


@pytest.fixture
def client(state: ServerState, told: Told) -> TestClient:
    watched = replace(state, meters=Meters([told.traces]))
    app = application(watched, None, None, told.traces)
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def test_a_request_is_a_span_with_its_route_status_adapter_and_number_of_texts(client: TestClient, told: Told) -> None:
    client.post("/v1/classify", json={"texts": ["a", "b"], "adapter": "mood"})
    [span] = told.spans.get_finished_spans()
    assert span.name == "POST /v1/classify"
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "ifedicl.adapter": "mood",
        "ifedicl.texts": 2,
    }
    points = told.points()
    assert points["ifedicl.texts"] == [({"ifedicl.adapter": "mood"}, 2)]
    assert points["http.server.request.duration"] == [({"http.route": "/v1/classify", "http.response.status_code": 200}, 1)]


def test_a_span_belongs_to_the_callers_trace(client: TestClient, told: Told) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    client.get("/healthz", headers={"traceparent": f"00-{trace}-{parent}-01"})
    client.get("/healthz", headers={"traceparent": "nonsense"})
    first, second = told.spans.get_finished_spans()
    assert first.context is not None
    assert first.parent is not None
    assert (f"{first.context.trace_id:032x}", f"{first.parent.span_id:016x}") == (trace, parent)
    assert second.parent is None


def test_neither_text_nor_path_nor_key_nor_host_is_told(state: ServerState, told: Told, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "reader")
    watched = replace(state, meters=Meters([told.traces]))
    app = application(watched, Keys(tmp_path / "keys"), None, told.traces)
    client = TestClient(app, base_url="http://secret-host.example", raise_server_exceptions=False)
    own = {"Authorization": f"Bearer {key}", "X-Name": SECRET}
    for texts in ([SECRET], [SECRET * 100], [""], {SECRET: 1}):
        client.post("/v1/classify", json={"texts": texts, "adapter": "mood"}, headers=own)
    client.get(f"/v1/adapters/{SECRET}?name={SECRET}", headers=own)
    client.get(f"/{SECRET}", headers=own)
    client.get("/v1/adapters", headers={"Authorization": f"Bearer {SECRET}"})
    spans = told.spans.get_finished_spans()
    assert [(span.attributes or {})["http.response.status_code"] for span in spans] == [200, 422, 422, 422, 404, 404, 401]
    everything = "".join(span.to_json() for span in spans) + str(told.points())
    for secret in (SECRET, SECRET.split()[0], key, "secret-host", "testclient"):
        assert secret not in everything


def test_a_server_without_telemetry_imports_none_of_it(state: ServerState, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ifedicl.serve.traces", None)
    client = TestClient(application(state, None, None), base_url="http://localhost")
    assert client.get("/readyz").status_code == 200
