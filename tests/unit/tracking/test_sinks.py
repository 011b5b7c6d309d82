"""TensorBoard files, an MLflow store and OpenTelemetry's own in-memory exporters, and how they are chosen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from ifedicl import cli
from ifedicl.errors import ConfigError
from ifedicl.federation import checkpoint
from ifedicl.federation.events import Delivered, RoundDone, StepStarted
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.state import RoundRecord, Traffic
from ifedicl.flare import processes
from ifedicl.flare.kits import provision
from ifedicl.flare.participants import load_project
from ifedicl.tracking.choice import VARIABLES, Trackers
from ifedicl.tracking.figures import Tracked
from ifedicl.tracking.spans import Gauges, run_spans
from ifedicl.tracking.telemetry import Telemetry, telemetry
from ifedicl.tracking.tensorboard import tensorboard
from tests.support import tiny
from tests.support.event_files import events_of
from tests.support.flare import project
from tests.support.run_folders import OPEN, run_of_four


def test_tensorboard_files_hold_the_figures_and_a_resumed_run_adds_to_them(tmp_path: Path) -> None:
    for step in (1, 2):  # two processes
        with tensorboard(tmp_path) as files:
            files.log({"held_out/loss": 0.5 * step, "clients": 3}, step)
            files.log({"held_out/loss": 0.25}, 10 * step)
            assert (10 * step, 0.25) in events_of(tmp_path)["held_out/loss"]  # a process that is killed now has lost nothing
    assert {name: sorted(points) for name, points in events_of(tmp_path).items()} == {
        "held_out/loss": [(1, 0.5), (2, 1.0), (10, 0.25), (20, 0.25)],
        "clients": [(1, 3.0), (2, 3.0)],
    }


@pytest.mark.soak  # MLflow makes its tables first
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # of MLflow with a newer SQLAlchemy
def test_mlflow_has_a_run_with_figures_settings_and_its_end(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from ifedicl.tracking.mlflow import mlflow

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    uri, method = f"sqlite:///{tmp_path / 'mlflow.db'}", tiny.method()
    with mlflow(uri, "night", method) as first:
        first.log({"held_out/loss": 0.5, "bytes/up": 12}, 1)
        first.log({"held_out/loss": 0.25}, 2)
    with pytest.raises(KeyboardInterrupt), mlflow(uri, "day", method):
        raise KeyboardInterrupt
    client = MlflowClient(uri)
    [place] = [item.experiment_id for item in client.search_experiments() if item.name == "ifedicl"]
    found = {item.info.run_name: item for item in client.search_runs([place])}
    assert {name: item.info.status for name, item in found.items()} == {"night": "FINISHED", "day": "FAILED"}
    night = found["night"]
    assert night.data.metrics == {"held_out/loss": 0.25, "bytes/up": 12.0}
    history = client.get_metric_history(night.info.run_id, "held_out/loss")
    assert [(item.step, item.value) for item in history] == [(1, 0.5), (2, 0.25)]
    assert night.data.params["rounds.rounds"] == "2"
    assert not [value for value in night.data.params.values() if tiny.TASK.template in value]


def test_an_mlflow_address_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    from ifedicl.tracking.mlflow import mlflow

    opened = mlflow("nonsense://me:secret@x", "a", tiny.method())
    with pytest.raises(ConfigError, match=r"mlflow: received 'nonsense://…@x'.*address") as refused, opened:
        raise AssertionError("it was opened")
    assert "secret" not in str(refused.value)


@contextmanager
def kept() -> Iterator[tuple[Telemetry, InMemorySpanExporter, InMemoryMetricReader]]:
    spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
    with telemetry("test", SimpleSpanProcessor(spans), [metrics]) as made:
        yield made, spans, metrics


def told(client: str, failure: str | None = None) -> Delivered:
    return Delivered(Traffic(client, "update", 0, 100, 40, 1.0, failure))


def test_a_run_is_a_trace_with_a_span_for_each_step_and_gauges() -> None:
    with kept() as (made, spans, metrics):
        with run_spans(made, "night") as observer:
            figures = Tracked(Gauges(made.meter), tiny.method())
            steps = StepStarted("update", 0, 2), told("a"), told("b", "internal"), RoundDone(RoundRecord(1, ("a",), 0.5), 2)
            for event in (*steps, StepStarted("evaluate", 1, 2)):
                observer(event)
                figures(event)
        finished = {span.name: span for span in spans.get_finished_spans()}
        assert set(finished) == {"run", "step update", "step evaluate"}
        run, step = finished["run"], finished["step update"]
        assert run.context is not None
        assert step.parent is not None
        assert (step.parent.span_id, dict(run.attributes or {})) == (run.context.span_id, {"ifedicl.run": "night"})
        assert dict(step.attributes or {}) == {
            "ifedicl.round": 0,
            "ifedicl.clients": 2,
            "ifedicl.bytes.down": 200,
            "ifedicl.bytes.up": 80,
            "ifedicl.answers": 1,
            "ifedicl.failures": 1,
        }
        measured = metrics.get_metrics_data()
        assert measured is not None
        [scope] = measured.resource_metrics[0].scope_metrics
        values = {item.name: item.data.data_points[0] for item in scope.metrics}
        assert values["ifedicl.run.train_loss"].value == 0.5  # type: ignore[union-attr]
        assert values["ifedicl.run.round"].value == 1  # type: ignore[union-attr]
        failed = values["ifedicl.run.step.failures"]
        assert dict(failed.attributes or {}) == {"ifedicl.step": "update", "ifedicl.failure": "internal"}


def test_a_run_that_fails_is_a_trace_that_failed_with_the_type_alone() -> None:
    with kept() as (made, spans, _):
        with pytest.raises(ValueError, match="a secret row"), run_spans(made, "night"):
            raise ValueError("a secret row")
        [run] = spans.get_finished_spans()
        assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, "ValueError")
        assert "secret" not in run.to_json()


def test_nothing_is_tracked_unless_it_is_asked_for() -> None:
    assert Trackers.of({}) == Trackers()
    assert Trackers.of(dict.fromkeys(VARIABLES, "")) == Trackers()
    asked = Trackers(Path("/srv/tb"), "http://mlflow:5000", telemetry=True)
    assert Trackers.of(asked.variables) == asked
    with Trackers().observer("night", tiny.method()) as observer:
        observer(StepStarted("update", 0, 2))


@pytest.mark.parametrize(
    ("trackers", "extra"),
    [
        (Trackers(tensorboard=Path("x")), "tensorboard"),
        (Trackers(mlflow="x"), "mlflow"),
        (Trackers(telemetry=True), "telemetry"),
        (Trackers(Path("x"), "x", telemetry=True), "tensorboard,mlflow,telemetry"),
    ],
)
def test_a_tracker_without_its_package_is_refused_with_the_extra(
    trackers: Trackers, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ifedicl.tracking.choice.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'ifedicl\[{extra}\]'"):
        trackers.check()


def test_a_server_hands_its_trackers_to_its_jobs_and_a_site_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kits = provision(load_project(project(tmp_path, sites='["north"]')), tmp_path / "kits")
    (kits["north"] / "client.toml").touch()
    monkeypatch.setenv("IFEDICL_MLFLOW", "http://of-the-environment:5000")
    monkeypatch.chdir(tmp_path)
    trackers = Trackers(Path("tb"), telemetry=True)
    _, server = processes.command(kits["server"], trackers)
    words, site = processes.command(kits["north"], trackers)
    assert {"uid=north", "org=north"} <= set(words)
    assert {name: server.get(name) for name in VARIABLES} == {
        "IFEDICL_TENSORBOARD": str(tmp_path / "tb"),
        "IFEDICL_MLFLOW": None,
        "IFEDICL_TELEMETRY": "1",
    }
    assert not set(VARIABLES) & set(site)


def test_run_writes_for_tensorboard_what_its_checkpoint_has(
    tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    config = run_of_four(tmp_path, llama_folder, OPEN)
    command = ["run", str(config), "--out", str(tmp_path / "night"), "--tensorboard", str(tmp_path / "tb"), "--track-clients"]
    cli.app(command, standalone_mode=False)
    state = checkpoint.load(RunFolder(tmp_path / "night").checkpoint)
    assert state is not None
    losses = [(record.round, record.held_out.loss) for record in state.history if record.held_out is not None]
    found = events_of(tmp_path / "tb" / "night")
    assert [step for step, _ in found["held_out/loss"]] == [step for step, _ in losses]
    assert [value for _, value in found["held_out/loss"]] == pytest.approx([loss for _, loss in losses], rel=1e-6)
    assert "client/north/held_out/loss" in found
