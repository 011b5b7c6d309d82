"""The Dockerfile and the compose files. No image is built here: they are linted, and what they name is checked."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ifedicl.flare.kits import provision
from ifedicl.flare.participants import load_project
from tests.support.arguments import parsed

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"
DOCKERFILE = FOLDER / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Instruction and its rest, with continued lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def services(name: str) -> dict[str, Any]:
    """A compose file's services; YAML's merge keys are resolved."""
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.compose.yaml").read_text())
    return dict(loaded["services"])


HADOLINT = Path(sys.executable).parent / "hadolint"
needs_hadolint = pytest.mark.skipif(not HADOLINT.exists(), reason="`make containers` installs it")


@needs_hadolint
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, "--format", "json", DOCKERFILE], capture_output=True, text=True)
    assert (json.loads(done.stdout), done.returncode) == ([], 0)


@needs_hadolint
def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN sudo pip install torch\nRUN pip install torch\n")
    done = subprocess.run([HADOLINT, "--format", "json", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert {"DL3006", "DL3004", "DL3013"} <= {item["code"] for item in json.loads(done.stdout)}


def test_the_image_runs_as_nobody_special_with_a_health_check_and_a_volume_for_models() -> None:
    found = instructions()
    last = dict(found)
    assert last["USER"] == "10001:10001"
    assert [rest for word, rest in found if word == "VOLUME"] == ["/cache"]
    assert "/readyz" in last["HEALTHCHECK"]
    assert [rest.split(" AS ")[1] for word, rest in found if word == "FROM"] == ["build", "ifedicl", "serve"]
    entry = [*json.loads(last["ENTRYPOINT"])[1:], "adapter", "--without-keys"]
    assert parsed(entry)["host"] == "0.0.0.0"  # noqa: S104


def test_torch_is_the_one_that_the_project_is_tested_with_and_its_source_an_argument() -> None:
    values = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert values["TORCH"] == pinned["torch"]
    assert "cpu" in values["TORCH_INDEX"]
    assert f"torch=={pinned['torch']}" in (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(values["EXTRAS"].split(",")) <= set(extras)


def test_what_is_copied_goes_to_the_builder_and_exists() -> None:
    sources = [
        path for word, rest in instructions() if word == "COPY" and not rest.startswith("--from") for path in rest.split()[:-1]
    ]
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {path.removeprefix("./") for path in sources} == sent
    assert [path for path in sent if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["serve", "federation"])
def test_the_services_drop_every_right_and_are_built_from_the_dockerfile(name: str) -> None:
    targets = {rest.split(" AS ")[1] for word, rest in instructions() if word == "FROM"}
    for service in services(name).values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["build"]["target"] in targets
        assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DOCKERFILE


def test_the_server_is_reached_from_this_machine_alone_and_asks_for_keys() -> None:
    served = services("serve")["serve"]
    assert served["ports"] == ["127.0.0.1:8000:8000"]
    words = ["serve", "--host", "0.0.0.0", "--port", "8000", *served["command"]]  # noqa: S104
    assert str(parsed(words)["keys"]) == "/run/secrets/keys"
    assert served["read_only"] is True


def test_the_federation_has_the_kits_of_its_project_and_commands_that_exist(tmp_path: Path) -> None:
    found = services("federation")
    kits = provision(load_project(FOLDER / "federation" / "project.toml"), tmp_path / "kits")
    folders = {path.relative_to(tmp_path) for path in kits.values()}
    mounted = {
        Path(volume.split(":")[0]).relative_to("federation")
        for service in found.values()
        for volume in service["volumes"]
        if volume.endswith(":/kit")
    }
    console = Path(found["console"]["environment"]["IFEDICL_CONSOLE"]).relative_to("/federation")
    assert mounted | {console} == folders
    assert set(found) == {"server", "site-a", "site-b", "site-c", "console"}
    for name, service in found.items():
        words = [*service["command"], *(["--console", "kit"] if name == "console" else [])]
        parsed(words)


@pytest.mark.parametrize("name", ["serve.compose.yaml", "federation.compose.yaml"])
def test_the_commands_in_the_comments_exist(name: str) -> None:
    comments = [line[1:].strip() for line in (FOLDER / name).read_text().splitlines() if line.startswith("#")]
    lines = [line.partition("  #")[0] for line in comments]
    words = [shlex.split(line) for line in lines if line.startswith("ifedicl ")]
    words += [shlex.split(found[2]) for line in lines if (found := re.search(r"\$C run --rm (console|[\w-]+) (.*)", line))]
    assert words
    for command in words:
        own = command[1:] if command[0] == "ifedicl" else command
        parsed([*own, *(["--console", "kit"] if own[:2] == ["flare", "submit"] else [])])
