"""The commands of docs/integrations.md: each is one that ifedicl takes, or names files that exist."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

from tests.support.arguments import parsed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text()
COMMANDS = [
    line[2:].partition("  #")[0]
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


def test_every_command_of_ours_is_one_that_ifedicl_takes() -> None:
    ours = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("ifedicl ")]
    ours += [shlex.split(line) for line in re.findall(r"`ifedicl ([^`]+)`", PAGE) if line.startswith("flare start kit")]
    assert {words[0] for words in ours} == {"push", "classify", "export", "serve", "harness", "run", "key", "flare"}
    for words in ours:
        parsed(words)


def test_every_extra_exists_and_every_path_of_a_container_too() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for line in COMMANDS for group in re.findall(r"ifedicl\[([\w,-]+)\]", line) for name in group.split(",")}
    assert {"lm-eval", "tensorboard", "mlflow", "telemetry", "serve"} <= named <= set(extras)
    paths = {path for line in COMMANDS for path in re.findall(r"containers/[\w./-]+", line)}
    assert {"containers/Dockerfile", "containers/chart", "containers/serve.compose.yaml"} <= paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for target in re.findall(r"make (\w+)", PAGE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_the_python_of_the_page_compiles_and_names_what_exists() -> None:
    from importlib import import_module

    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ifedicl"):
                assert all(hasattr(import_module(str(node.module)), item.name) for item in node.names)


def test_each_integration_has_its_section() -> None:
    sections = re.findall(r"^## (.*)", PAGE, re.MULTILINE)
    assert sections == [
        "The hub",
        "lm-evaluation-harness",
        "Trackers",
        "OpenTelemetry",
        "Containers",
        "Kubernetes",
        "Package and release",
    ]
