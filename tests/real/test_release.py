"""The wheel has what the package needs and runs by itself; the signing recipe of docs/release.md works."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import ifedicl

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "ifedicl"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in isolation, as an installer does."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", out, ROOT], check=True)
    [built] = out.iterdir()
    return built


@pytest.mark.soak  # it fetches the build backend
def test_the_wheel_holds_the_package_with_all_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
        [info] = {name.partition("/")[0] for name in held if ".dist-info/" in name}
        facts = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    wanted = {
        str(path.relative_to(SOURCE.parent)) for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    for kind in ("presets/demo.toml", "templates/report.html", "serve/page/index.html", "bench/plans/cpu.toml", "py.typed"):
        assert f"ifedicl/{kind}" in wanted
    assert "ifedicl/store/migrations/versions/r0001.py" in wanted
    assert {name for name in held if not name.startswith(info)} == wanted
    assert f"{info}/licenses/LICENSE" in held
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (facts["Name"], facts["Version"], facts["License-Expression"]) == ("ifedicl", ifedicl.__version__, "Apache-2.0")
    assert set(facts.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert {line.split(", ")[1] for line in facts.get_all("Project-URL", [])} == set(project["urls"].values())


_INSTALLED = """
import pathlib, sys
import ifedicl, ifedicl.cli
from ifedicl.settings import load_preset
from ifedicl.store import open_store
assert pathlib.Path(ifedicl.__file__).is_relative_to(sys.prefix), ifedicl.__file__
presets = [file.stem for file in pathlib.Path(ifedicl.__file__).with_name("presets").glob("*.toml")]
assert len([load_preset(name) for name in presets]) > 5
open_store("tasks.sqlite").close()
for words in (["init", "config.toml"], ["policy", "init", "client.toml"], ["--version"]):
    try:
        ifedicl.cli.main(words)
    except SystemExit as stop:
        assert not stop.code, words
"""


@pytest.mark.soak
def test_the_wheel_runs_in_an_environment_without_the_project(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are those of the tests, through a path file: torch alone is hundreds of megabytes."""
    venv.create(tmp_path / "clean", with_pip=False)
    python = tmp_path / "clean" / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    [packages] = (tmp_path / "clean" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    done = subprocess.run([python, "-c", _INSTALLED], **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert f"ifedicl {ifedicl.__version__}" in done.stdout
    command = subprocess.run([tmp_path / "clean" / "bin" / "ifedicl", "--help"], **options)  # type: ignore[call-overload]
    assert "Calibrate one frozen language model together" in command.stdout


def test_the_version_is_the_same_wherever_it_stands() -> None:
    chart = yaml.safe_load((ROOT / "containers" / "chart" / "Chart.yaml").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {chart["version"], chart["appVersion"], citation["version"], project["version"]} == {ifedicl.__version__}


def recipe(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", (ROOT / "docs" / "release.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH")
def test_the_signing_recipe_accepts_what_was_signed_and_nothing_else(tmp_path: Path) -> None:
    def bash(script: str) -> int:
        environment = {**os.environ, "KEY": str(tmp_path / "key")}
        return subprocess.run(["/bin/bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True).returncode

    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "a.whl").write_text("wheel")
    assert bash("ssh-keygen -q -t ed25519 -N '' -f key && cd dist && sha256sum * > SHA256SUMS") == 0
    assert bash(recipe("sign")) == 0
    assert bash(recipe("verify")) == 0
    (tmp_path / "dist" / "a.whl").write_text("another")
    assert bash(recipe("verify")) != 0
    assert bash("cd dist && sha256sum a.whl > SHA256SUMS") == 0
    assert bash(recipe("verify")) != 0
    other = "ssh-keygen -q -t ed25519 -N '' -f other && ssh-keygen -q -Y sign -f other -n ifedicl-release dist/SHA256SUMS"
    assert bash(f"rm dist/SHA256SUMS.sig && {other}") == 0
    assert bash(recipe("verify")) != 0
