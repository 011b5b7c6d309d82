"""What the core does without the extras, and what it says where one is missing."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ifedicl import federate, report, simulate
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.cli import app
from ifedicl.errors import BackboneError, ConfigError
from ifedicl.settings import ModelSettings
from tests.support import tiny


def extras() -> dict[str, set[str]]:
    project: dict[str, Any] = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    return {name: set(packages) for name, packages in project["optional-dependencies"].items()}


def test_the_demo_has_what_gguf_and_pictures_have_and_dev_has_it_all() -> None:
    assert extras()["demo"] == extras()["gguf"] | extras()["pictures"]
    assert extras()["demo"] <= extras()["dev"]


def test_a_gguf_model_without_its_packages_is_refused_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ifedicl.backbone.gguf.find_spec", lambda name: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(BackboneError, match=r"not installed \(accelerate, gguf\): pip install 'ifedicl\[gguf\]'"):
        load_backbone(ModelSettings(source=str(tmp_path / "model.gguf")))


@pytest.mark.parametrize("installed", [True, False])
def test_a_report_without_matplotlib_has_its_tables_and_says_how_to_get_pictures(
    installed: bool, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ifedicl.report.writing.can_draw", lambda: installed)
    examples = {"north": tiny.examples(12), "south": tiny.examples(12, seed=1)}
    model = ModelSettings(source="tiny", device="cpu", dtype="float32")
    method = tiny.method(rounds={"rounds": 1})
    run = federate(simulate(backbone, tiny.TASK, examples), model, tiny.TASK, method)
    report.write_report(report.Report("mood", run.adapter, run.outcome, examples, (), (), (), 1.0), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Examples of each client" in page
    assert ("<svg" in page) == installed
    assert ("pip install 'ifedicl[pictures]'" in page) != installed


@pytest.mark.parametrize("arguments", [["demo"], ["demo", "--flare"]])
def test_the_demo_without_its_packages_is_refused_before_anything_is_fetched(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ifedicl.cli.extras.find_spec", lambda name: None if name == "gguf" else name)
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, ConfigError)
    assert "packages: received no gguf" in str(done.exception)
    assert "pip install 'ifedicl[demo]'" in str(done.exception)
    assert not (tmp_path / "out").exists()
