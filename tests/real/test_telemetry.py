"""OpenTelemetry's own exporters against a stand-in for a collector on loopback."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ifedicl.federation.events import Delivered, StepStarted
from ifedicl.federation.state import Traffic
from ifedicl.settings import load_preset
from ifedicl.tracking.choice import Trackers


def test_a_collector_gets_the_spans_and_metrics_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, bytes] = {}

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "of the operator")
        with Trackers(telemetry=True).observer("night", load_preset("paper")) as observer:
            observer(StepStarted("update", 0, 2))
            observer(Delivered(Traffic("north", "update", 0, 100, 40, 1.0, "internal")))
        server.shutdown()
    assert set(received) == {"/v1/traces", "/v1/metrics"}
    assert b"ifedicl.run.step.failures" in received["/v1/metrics"]
    for part in (b"of the operator", b"step update", b"night"):
        assert part in received["/v1/traces"]
