"""How the tests and the source are laid out."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import TRACEBACK, pytest_runtest_makereport

ROOT = Path(__file__).parents[2]
GENERATORS = {"default_rng", "generator", "Generator", "manual_seed", "Random", "RandomState"}


@cache
def python_files(folder: str) -> list[tuple[Path, ast.Module]]:
    return [(path.relative_to(ROOT), ast.parse(path.read_text())) for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module or name that is imported, anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{item.name}" for item in node.names)


def imported_tests(tree: ast.Module) -> list[str]:
    return [name for name in imported(tree) if re.search(r"^tests\.(unit|real)\b|\btest_\w+", name)]


def generators_kept(tree: ast.Module) -> list[str]:
    """Names at module level that hold a generator of random numbers."""
    return [
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call)
        if ast.unparse(node.value.func).rpartition(".")[2] in GENERATORS
    ]


def test_no_test_module_imports_another() -> None:
    """What tests share stands in ``tests/support``."""
    found = {str(path): names for path, tree in python_files("tests") if (names := imported_tests(tree))}
    assert found == {}


def test_no_module_keeps_a_generator_of_random_numbers() -> None:
    """Two tests that draw from one generator depend on which runs first."""
    found = {str(path): lines for path, tree in python_files("tests") if (lines := generators_kept(tree))}
    assert found == {}


def test_no_test_file_is_longer_than_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize(
    ("line", "check"),
    [
        ("from tests.unit.test_store import KEY", imported_tests),
        ("import tests.real.test_page", imported_tests),
        ("def late():\n    from tests.unit import test_cli", imported_tests),
        ("DRAW = np.random.default_rng(0)", generators_kept),
        ("DRAW: random.Random = random.Random(0)", generators_kept),
    ],
)
def test_the_checks_find_what_they_look_for(line: str, check: object) -> None:
    assert callable(check)
    assert check(ast.parse(line))


def shared_file_names() -> set[str]:
    """Modules of ``src`` whose file name another one has too."""
    places: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "src" / "ifedicl").rglob("*.py"):
        if path.stem not in {"__init__", "__main__"}:
            places[path.name].add(str(path.relative_to(ROOT / "src" / "ifedicl")))
    return set().union(*(paths for paths in places.values() if len(paths) > 1))


def test_each_shared_file_name_is_justified() -> None:
    """The section "Shared file names" of the architecture page names these modules and no others."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = re.split(r"^## ", page.partition("## Shared file names")[2], flags=re.MULTILINE)[0]
    assert set(re.findall(r"`([\w/]+\.py)`", section)) == shared_file_names()


# No traceback reaches a user in any test


def test_a_traceback_that_a_test_reads_fails_it(capsys: pytest.CaptureFixture[str]) -> None:
    print(f"{TRACEBACK}:")
    with pytest.raises(AssertionError, match="a traceback would reach a user"):
        capsys.readouterr()


@pytest.mark.parametrize(("mark", "outcome"), [(None, "failed"), ("mistake", "passed")])
@pytest.mark.parametrize("where", ["stdout", "stderr", "log"])
def test_a_traceback_that_a_test_leaves_behind_fails_it_unless_it_simulates_a_mistake(
    where: str, mark: str | None, outcome: str
) -> None:
    item: Any = SimpleNamespace(get_closest_marker=lambda name: name if name == mark else None)
    sections = [(f"Captured {where} call", f"x\n{TRACEBACK}:\n")]
    report: Any = SimpleNamespace(passed=True, when="call", outcome="passed", sections=sections)
    hook = pytest_runtest_makereport(item)
    next(hook)
    with pytest.raises(StopIteration) as done:
        hook.send(report)
    assert done.value.value.outcome == outcome
