"""FLARE job folders: their content, resumed jobs, and jobs of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ifedicl import cli
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.source import shape_of
from ifedicl.errors import ConfigError
from ifedicl.flare import names, processes
from ifedicl.flare.jobs import JobSettings, as_resume, job_settings, read_job, write_job
from ifedicl.flare.kits import provision
from ifedicl.flare.participants import load_project
from ifedicl.settings import Coordination, ModelSettings, changed, load_settings, validated
from tests.support import tiny
from tests.support.flare import job, project
from tests.support.run_folders import short_run


def test_a_job_holds_settings_and_two_names_of_ours_and_no_code(backbone: Backbone, tmp_path: Path) -> None:
    write_job(job(backbone), tmp_path / "job")
    files = sorted(str(path.relative_to(tmp_path / "job")) for path in (tmp_path / "job").rglob("*") if path.is_file())
    assert files == ["meta.json", "server/config/config_fed_server.json", "site/config/config_fed_client.json"]
    server = json.loads((tmp_path / "job" / files[1]).read_text())
    site = json.loads((tmp_path / "job" / files[2]).read_text())
    assert server["server"]["task_request_interval"] == 0.05
    assert [item["path"] for item in server["workflows"]] == ["ifedicl.flare.controller.RoundsController"]
    assert site["executors"][0]["executor"] == {
        "path": "ifedicl.flare.executor.SiteExecutor",
        "args": {},
    }


def test_a_job_may_ask_sites_to_ask_less_often_and_a_resume_keeps_it(backbone: Backbone, tmp_path: Path) -> None:
    write_job(job(backbone).model_copy(update={"interval": 2.0}), tmp_path / "job")
    with as_resume(tmp_path / "job") as again:
        server = json.loads((again / "server" / "config" / "config_fed_server.json").read_text())
        site = json.loads((again / "site" / "config" / "config_fed_client.json").read_text())
    assert (server["server"]["task_request_interval"], site["default_task_fetch_interval"]) == (2.0, 2.0)


OLD_ROOM = "ifedicl.federation.engines.nvflare"
"""Where the version before had its classes for FLARE."""


def test_a_job_that_an_earlier_version_wrote_is_refused_with_its_remedy(backbone: Backbone, tmp_path: Path) -> None:
    write_job(job(backbone), tmp_path / "job")
    for file in (tmp_path / "job").rglob("*.json"):
        text = file.read_text().replace("ifedicl.flare.controller", f"{OLD_ROOM}.server")
        file.write_text(text.replace("ifedicl.flare.executor", f"{OLD_ROOM}.executor"))
    wanted = r"folder: received .*nvflare\.server\.RoundsController.*Write it again with `ifedicl flare job`"
    with pytest.raises(ConfigError, match=wanted):
        read_job(tmp_path / "job")
    with pytest.raises(ConfigError, match=wanted), as_resume(tmp_path / "job"):
        pass
    with pytest.raises(SystemExit) as stop:
        cli.main(("flare", "submit", str(tmp_path / "job"), "--console", str(tmp_path / "no kit")))
    assert stop.value.code == ConfigError.exit_code


def test_a_kit_that_an_earlier_version_has_started_from_works_on(tmp_path: Path) -> None:
    """The signed part of a kit names no class; the rules beside it, which do, are written at every start."""
    kits = provision(load_project(project(tmp_path, sites='["north"]')), tmp_path / "kits")
    for kit in kits.values():
        assert not [file for file in (kit / "startup").iterdir() if b"ifedicl" in file.read_bytes()]
    (kits["north"] / "client.toml").touch()
    for name, room in (("server", "server.RoundsController"), ("north", "executor.SiteExecutor")):
        rules = kits[name] / "local" / "resources.json"
        rules.write_text(json.dumps({"class_allow_list": [f"{OLD_ROOM}.{room}"], "components": []}))
        processes.command(kits[name])
        written = rules.read_text()
        assert OLD_ROOM not in written
        allowed = names.CONTROLLER if name == "server" else names.EXECUTOR
        assert json.loads(written)["class_allow_list"] == [allowed]


def test_the_classes_that_a_job_names_exist_and_keep_their_arguments(backbone: Backbone) -> None:
    from ifedicl.flare import controller, executor, readmission

    for path, room in (
        (names.CONTROLLER, controller),
        (names.EXECUTOR, executor),
        (names.READMISSION, readmission),
    ):
        module, _, name = path.rpartition(".")
        assert (module, hasattr(room, name)) == (room.__name__, True)
    settings = job(backbone).model_dump(mode="json")
    controller = controller.RoundsController(job=settings, resume=True)
    assert (controller.job, controller.resume) == (settings, True)


def test_a_site_that_cannot_open_its_client_says_why_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from ifedicl.flare.executor import SiteExecutor

    (tmp_path / "client.toml").write_text("[data]\n")
    SiteExecutor()._open(tmp_path, "north")
    (record,) = caplog.records
    assert "client north: could not be opened; every request will be refused: " in record.message
    assert "data.file: received nothing" in record.message
    assert record.exc_info is None


def test_a_job_that_resumes_differs_in_that_alone(backbone: Backbone, tmp_path: Path) -> None:
    write_job(job(backbone), tmp_path / "job")
    name = "server/config/config_fed_server.json"
    before = json.loads((tmp_path / "job" / name).read_text())["workflows"][0]["args"]
    with as_resume(tmp_path / "job") as again:
        after = json.loads((again / name).read_text())["workflows"][0]["args"]
    assert (before.pop("resume"), after.pop("resume")) == (False, True)
    assert before == after
    with pytest.raises(ConfigError, match="ifedicl flare job"), as_resume(tmp_path):
        pass


def test_a_job_that_needs_more_sites_than_there_are_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"coordination\.min_clients.*received 4"):
        write_job(job(backbone, coordination=Coordination(min_clients=4)), tmp_path / "job")


_PRIVATE: dict[str, Any] = {
    "holdout": {"selection": 0.0},
    "server": {"update": "gradient", "draw": 1.0},
    "injection": {"from_depth": 0.4},
    "weighting": "examples",
    "rounds": {"select_by": "last"},
    "privacy": {"mode": "private", "noise": {"epsilon": 2.0}},
}


def test_a_job_may_promise_noise(backbone: Backbone) -> None:
    settings = job(backbone)
    values = settings.model_dump(mode="json")
    values["method"] = changed(settings.method, _PRIVATE, "test").model_dump(mode="json")
    assert validated(JobSettings, values, "job").manifest.method.promises_noise


def test_a_config_becomes_a_job_with_the_models_fingerprint(llama_folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    settings = load_settings(short_run(tmp_path, llama_folder))
    made = job_settings(settings, ("b", "a"), "night")
    assert (made.name, made.sites, made.fingerprint) == ("night", ("b", "a"), backbone.fingerprint)
    assert (made.layers, made.width) == (backbone.layers, backbone.width)
    assert made.method == settings.method
    with pytest.raises(ConfigError, match="name"):
        job_settings(settings, ("a",), "../elsewhere")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3"])
def test_a_models_shape_is_known_without_loading_it(family: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / family, family)
    loaded, shape = tiny.load(folder), shape_of(ModelSettings(source=str(folder)))
    assert (shape.fingerprint, shape.layers, shape.width) == (loaded.fingerprint, loaded.layers, loaded.width)
