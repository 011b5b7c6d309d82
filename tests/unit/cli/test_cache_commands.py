"""The task cache on the command line."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest

from ifedicl.errors import StorageError
from tests.support.command_line import run

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_the_command_line_from_a_miss_to_a_hit_and_to_another_federation(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = str(tmp_path / "cache.sqlite")
    arguments = ["run", str(config), "--store", store, "--federation", "clinics", "--json"]
    assert run(*arguments, "--out", str(tmp_path / "one")) == 0
    assert json.loads(capsys.readouterr().out)["cache"]["kind"] == "miss"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("ifedicl.runs.local_run.load_backbone", never)
    assert run(*arguments, "--out", str(tmp_path / "two")) == 0
    assert json.loads(capsys.readouterr().out)["cache"]["kind"] == "exact"
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "one" / "adapter" / name).read_bytes() == (tmp_path / "two" / "adapter" / name).read_bytes()

    assert run("tasks", "export", "1", str(tmp_path / "out"), "--store", store) == 0
    assert run("tasks", "import", str(tmp_path / "out"), "--federation", "banks", "--store", store) == 0
    capsys.readouterr()
    assert run("tasks", "list", "--store", store, "--json") == 0
    assert [(row["federation"], row["version"]) for row in json.loads(capsys.readouterr().out)] == [
        ("clinics", 1),
        ("banks", 1),
    ]
    assert run("tasks", "search", "2", "--store", store, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []  # clinics' version is no neighbour of banks'
    assert run("tasks", "show", "2", "--store", store) == 0
    assert json.loads(capsys.readouterr().out)["has_signature"]
    assert run("tasks", "gc", "--store", store) == 0
    assert run("tasks", "rm", "1", "2", "--store", store) == 0
    with sqlite3.connect(store) as connection:
        names = ("tasks", "versions", "signatures")
        counts = [connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names]  # noqa: S608
    connection.close()
    assert counts == [0, 0, 0]
    assert run("tasks", "show", "1", "--store", store) == StorageError.exit_code


def test_without_its_packages_the_command_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    monkeypatch.delitem(sys.modules, "ifedicl.store.database", raising=False)
    assert run("tasks", "list", "--store", str(tmp_path / "x")) == StorageError.exit_code
    assert "pip install 'ifedicl[store]'" in capsys.readouterr().err
