"""Documentation that cannot drift: command pages are the help texts, tables name what exists."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from pathlib import Path

import pytest
import typer

from ifedicl import cli, errors
from ifedicl.backbone.families import FAMILIES
from ifedicl.bench.methods import METHODS
from ifedicl.bench.plan import load_plan
from ifedicl.settings import changed, load_preset

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "commands.md")]
PAGES += [f"docs/dev/{path.name}" for path in sorted((ROOT / "docs" / "dev").glob("*.md"))]
COMMANDS = [command.callback.__name__ for command in cli.app.registered_commands if command.callback]
COMMANDS += [
    name
    for group in cli.app.registered_groups
    if group.name and group.typer_instance
    for name in (
        group.name,
        *(
            f"{group.name} {item.name or item.callback.__name__}"
            for item in group.typer_instance.registered_commands
            if item.callback
        ),
    )
]
HEAD = "# Commands\n\nThese are the help texts, word for word; `tests/unit/test_docs.py` checks that they are.\n"


def commands_page(capsys: pytest.CaptureFixture[str]) -> str:
    """What docs/commands.md must be."""
    command, parts = typer.main.get_command(cli.app), [HEAD]
    for name in ("", *COMMANDS):
        command.main([*name.split(), "--help"], prog_name="ifedicl", standalone_mode=False)
        words = " ".join(["ifedicl", *name.split()])
        parts.append(f"## `{words}`\n\n```text\n{capsys.readouterr().out.strip()}\n```\n")
    return "\n".join(parts)


def test_the_commands_page_is_the_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = ROOT / "docs" / "commands.md"
    page = commands_page(capsys)
    if os.environ.get("IFEDICL_WRITE_DOCS"):
        path.write_text(page)
    assert path.read_text() == page, "run: IFEDICL_WRITE_DOCS=1 .venv/bin/python -m pytest tests/unit/test_docs.py"


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_a_page_names_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    places = [ROOT, ROOT / "docs", ROOT / "src" / "ifedicl"]
    for path in re.findall(r"`([\w/.-]+\.(?:py|md|toml))\b", text) + re.findall(r"\]\(([\w/.-]+)\)", text):
        if path not in {"config.toml", "client.toml", "project.toml", "kit/client.toml"}:
            assert any((place / path).exists() for place in places), path


def test_every_test_that_the_reliability_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 10
    assert named - defined == set()


def privacy_page() -> str:
    return (ROOT / "docs" / "privacy.md").read_text()


def rows_under(header: str, page: str) -> list[list[str]]:
    """The cells of each row of the table with this header."""
    table = page.partition(f"\n{header}\n")[2].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[1:]]


def names_of_tests(path: Path) -> set[str]:
    """The names of a file's tests, read from its source."""
    nodes = ast.parse(path.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_promise_of_the_privacy_page_names_a_test_and_source_that_exist() -> None:
    rows = rows_under("| promise | enforced in | test |", privacy_page())
    assert len(rows) > 10
    for promise, enforced, tested in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tested)
        assert named, promise
        for path, name in named:
            assert (ROOT / path).exists(), path
            assert name in names_of_tests(ROOT / path), f"{path}::{name}"
        for path in re.findall(r"`([\w/]+\.py)`", enforced):
            assert (ROOT / "src" / "ifedicl" / path).exists(), path


def test_every_report_names_its_thread_its_outcome_and_tests_that_exist() -> None:
    page = (ROOT / "docs" / "dev" / "reports.md").read_text()
    rows = rows_under("| report | situation | outcome | test |", page)
    assert len(rows) >= 10
    for report, _, outcome, tested in rows:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", report)
        assert re.match("Held|Mended: ", outcome), report
        assert "::test_" in tested, report
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page):
        assert name in names_of_tests(ROOT / path), f"{path}::{name}"


def test_the_privacy_page_has_at_most_250_lines() -> None:
    assert len(privacy_page().splitlines()) <= 250


def test_no_page_has_a_figure_left_to_fill_in() -> None:
    assert [page.name for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if "@@" in page.read_text()] == []


def test_the_models_page_names_every_family() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    assert [family for family in FAMILIES if f"`{family}`" not in page] == []


def test_the_error_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"\b(\w+Error)\b", errors.__doc__))
    defined = {name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, Exception)}
    assert drawn == defined


def test_the_table_of_equations_names_functions_that_exist() -> None:
    text = (ROOT / "docs" / "paper-to-code.md").read_text()
    for path, name in re.findall(r"`([\w/]+\.py): (\w+)", text):
        assert re.search(rf"\b(def|class) {name}\b|^{name}\b", (ROOT / "src" / "ifedicl" / path).read_text(), re.MULTILINE), (
            name
        )


def architecture() -> str:
    return (ROOT / "docs" / "architecture.md").read_text()


def test_the_architecture_page_names_functions_and_classes_that_exist() -> None:
    named = re.findall(r"`([\w/]+\.py): ([\w.]+)`", architecture())
    assert len(named) > 20
    for path, name in named:
        source = (ROOT / "src" / "ifedicl" / path).read_text()
        for part in name.split("."):
            assert re.search(rf"\b(def|class) {part}\b", source), f"{path}: {name}"


def test_the_layers_of_the_architecture_page_are_those_of_the_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    rows = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| \d+ \| ([^|]+) \|", architecture(), re.MULTILINE)]
    assert rows == [[name.strip().removeprefix("ifedicl.") for name in layer.split("|")] for layer in contract["layers"]]
    assert len(rows) <= 16


def test_every_package_and_module_of_the_top_level_has_a_layer() -> None:
    layers = re.findall(r"^\| \d+ \| ([^|]+) \|", architecture(), re.MULTILINE)
    packages = {path.parent.name for path in (ROOT / "src" / "ifedicl").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "src" / "ifedicl").glob("*.py")} - {"__init__"}
    assert {name for row in layers for name in re.findall(r"`(\w+)`", row)} == packages | modules


def test_the_benchmark_page_names_every_method_and_its_plan_loads(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "benchmark.md").read_text()
    assert [name for name in METHODS if f"| `{name}` |" not in page] == []
    (tmp_path / "plan.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    assert set(load_plan(str(tmp_path / "plan.toml")).sets) == {"tickets", "moods", "places", "reports"}


@pytest.mark.parametrize("name", PAGES)
def test_every_config_on_a_page_is_one(name: str) -> None:
    for block in re.findall(r"```toml\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
        tomllib.loads(block)


def test_the_config_of_private_mode_is_allowed() -> None:
    page = (ROOT / "docs" / "private-mode.md").read_text()
    sections = tomllib.loads(page.split("```toml\n")[1].split("```")[0])
    preset, public = load_preset(sections.pop("preset")), sections.pop("data")["public"]
    assert public
    assert changed(preset, sections, "docs/private-mode.md").promises_noise
