"""What leaves a run by a tracker: totals, and of a single client nothing that the privacy mode hides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ifedicl import runs
from ifedicl.backbone.load import Backbone
from ifedicl.errors import ConfigError
from ifedicl.federation.events import Begun, Event, each
from ifedicl.settings import Method, ModelSettings
from ifedicl.tracking.figures import Tracked
from ifedicl.tracking.spans import Gauges, run_spans
from ifedicl.tracking.telemetry import telemetry
from ifedicl.tracking.tensorboard import tensorboard
from tests.support import tiny
from tests.support.private import private_method

CLIENTS = ("Clinic Ilsebill", "Clinic Quandt", "Clinic Norderney", "Clinic Husum")
SECURE = tiny.method(weighting="examples", privacy={"mode": "secure", "min_examples": 2})


class Kept:
    """A tracker that keeps what it gets."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def log(self, figures: Mapping[str, float], step: int, /) -> None:
        assert step not in self.steps
        self.steps[step] = dict(figures)


def run(backbone: Backbone, method: Method, *observers: object, **options: object) -> runs.Federated:
    """A run of four clients with striking names."""
    examples = {name: tiny.examples(12, seed=seed) for seed, name in enumerate(CLIENTS)}
    observed = each(*observers)  # type: ignore[arg-type]
    settings = runs.RunOptions(observer=observed, **options)  # type: ignore[arg-type]
    model = ModelSettings(source="tiny", device="cpu", dtype="float32")
    public = tuple(example.text for example in tiny.examples(20, seed=99)) if method.promises_noise else ()
    clients = runs.simulate(backbone, tiny.TASK, examples)
    return runs.federate(clients, model, tiny.TASK, method, public=public, options=settings)


def test_each_round_leaves_its_totals(backbone: Backbone) -> None:
    kept = Kept()
    ticks: Iterator[int] = iter(range(100))
    state = run(backbone, tiny.method(), Tracked(kept, tiny.method(), clock=lambda: float(next(ticks)))).outcome.state
    assert list(kept.steps) == [record.round for record in state.history] == [1, 2]
    for record in state.history:
        figures, sent = kept.steps[record.round], [item for item in state.traffic if item.round < record.round]
        assert record.held_out is not None
        assert figures["held_out/loss"] == record.held_out.loss
        assert figures["held_out/accuracy"] == record.held_out.accuracy
        assert figures.get("train_loss") == record.train_loss
        assert figures["clients"] == len(record.clients)
        assert (figures["failures"], figures["seconds"]) == (0, record.round)
        assert figures["bytes/up"] >= sum(item.bytes_up for item in sent if item.step == "update")
    last = kept.steps[2]
    assert kept.steps[1]["bytes/down"] < last["bytes/down"] <= sum(item.bytes_down for item in state.traffic)


@pytest.mark.parametrize("method", [tiny.method(), SECURE, private_method()], ids=["open", "secure", "private"])
def test_no_sink_gets_a_clients_name_or_figure(backbone: Backbone, method: Method, tmp_path: Path) -> None:
    kept, spans, metrics = Kept(), InMemorySpanExporter(), InMemoryMetricReader()
    with (
        telemetry("test", SimpleSpanProcessor(spans), [metrics]) as sent,
        run_spans(sent, "night") as traced,
        tensorboard(tmp_path) as files,
    ):
        trackers = [Tracked(tracker, method) for tracker in (kept, files, Gauges(sent.meter))]
        run(backbone, method, traced, *trackers)
        measured = metrics.get_metrics_data()
        assert measured is not None
        told = measured.to_json() + "".join(span.to_json() for span in spans.get_finished_spans())
    assert kept.steps
    assert not [name for figures in kept.steps.values() for name in figures if name.startswith("client/")]
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert len(written) > 100
    assert "step" in told
    for name in CLIENTS:
        for part in name.split():
            assert part not in told
            assert part.encode() not in written


def test_in_the_open_mode_single_clients_leave_if_they_are_asked_for(backbone: Backbone) -> None:
    kept = Kept()
    state = run(backbone, tiny.method(), Tracked(kept, tiny.method(), by_client=True)).outcome.state
    for record in state.history:
        for name, tally in record.by_client.items():
            assert kept.steps[record.round][f"client/{name}/held_out/loss"] == tally.loss
            assert kept.steps[record.round][f"client/{name}/held_out/accuracy"] == tally.accuracy


@pytest.mark.parametrize("method", [SECURE, private_method()], ids=["secure", "private"])
def test_a_mode_that_hides_single_clients_refuses_to_track_them(method: Method) -> None:
    with pytest.raises(ConfigError, match=r"by_client: received true; allowed: false in privacy\.mode"):
        Tracked(Kept(), method, by_client=True)


def test_a_tracker_that_fails_is_left_alone_and_the_run_goes_on(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Kept):
        def log(self, figures: Mapping[str, float], step: int, /) -> None:
            super().log(figures, step)
            raise ConnectionError("the secret address does not answer")

    broken, kept = Broken(), Kept()
    run(backbone, tiny.method(), Tracked(broken, tiny.method()), Tracked(kept, tiny.method()))
    assert (len(broken.steps), len(kept.steps)) == (1, 2)
    assert [message for message in caplog.messages if "Broken" in message] == [
        "Broken failed (ConnectionError); it gets no more figures, and the run goes on"
    ]


def test_after_a_resume_the_totals_go_on(backbone: Backbone) -> None:
    events: list[Event] = []
    whole = Kept()
    state = run(backbone, tiny.method(), events.append, Tracked(whole, tiny.method())).outcome.state
    rest = Kept()
    resumed = Tracked(rest, tiny.method())
    resumed(Begun(state))
    resumed(
        events[-1] if type(events[-1]).__name__ == "RoundDone" else next(e for e in events if type(e).__name__ == "RoundDone")
    )
    assert next(iter(rest.steps.values()))["bytes/up"] == sum(item.bytes_up for item in state.traffic)
