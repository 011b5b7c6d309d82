"""What somebody at a shell meets every day: help, completion, columns, folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import run


def test_summaries_fit_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for group in ([], ["flare"], ["policy"], ["ledger"], ["tasks"]):
        assert run(*group, "-h") == 0
        commands = capsys.readouterr().out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
        assert len(commands) >= 4
        assert [line for line in commands if "..." in line or len(line) > 80 or not line.rstrip().endswith(".")] == []


def test_the_shell_completes_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_IFEDICL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "ifedicl cl")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run() == 0
    assert capsys.readouterr().out.split() == ["classify"]


def test_a_runs_folder_stands_for_its_adapter_and_an_id_for_its_row(
    finished: Path, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("case,note\nA-1,warm soup\nA-2,cold room\n")
    columns = ("--file", tmp_path / "a.csv", "--text-column", "note", "--id-column", "case")
    assert run("classify", finished, *columns) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["A-1", "A-2"]
    assert run("classify", finished / "adapter", *columns, "--json") == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["A-1", "A-2"]
    assert run("classify", finished, "warm soup", "--id-column", "case") == 3
    assert "--id-column: received 'case' without a table" in capsys.readouterr().err
    assert run("inspect", finished, "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "adapter"


def test_a_missing_column_is_one_fault_and_names_the_options(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("case,note\n" + "A-1,warm soup\n" * 30)
    assert run("evaluate", finished, tmp_path / "a.csv") == 3
    said = capsys.readouterr().err
    assert said.count("no column 'text' and no 'label'; it has 'case', 'note'") == 1
    assert len(said.splitlines()) == 1
    assert "--text-column and --label-column" in said
