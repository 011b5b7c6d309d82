"""Commands that get folders: of any name, and with any content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.command_line import printed, run


@pytest.mark.parametrize("name", ["[D] *x?", "{a} ~ 日本"])
def test_no_character_of_a_path_has_a_meaning(
    config: Path, llama_folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    (folder / "parts").mkdir(parents=True)
    shutil.copytree(llama_folder, folder / "model [1]")
    shutil.copytree(config.parent / "run" / "adapter", folder / "adapter")
    for part in range(2):
        tiny.write_rows(folder / "parts" / f"part-{part}.jsonl", tiny.rows(5, seed=part))
    assert printed(capsys, "inspect", folder / "parts", "--json")["rows"] == 10
    asked = ("evaluate", folder / "adapter", folder / "parts", "--model", folder / "model [1]", "--json")
    assert printed(capsys, *asked)["adapter"]["examples"] == 10


def test_inspecting_a_folder_says_what_it_holds(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for part in range(2):
        tiny.write_rows(parts / f"part-{part}.jsonl", tiny.rows(5, seed=part))
    assert printed(capsys, "inspect", parts, "--json")["rows"] == 10
    (parts / "other.csv").write_text("text,label\n")
    assert run("inspect", parts) == 3
    assert "received a folder with several data files" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run("inspect", tmp_path / "empty") == 5
    assert "is not an adapter" in capsys.readouterr().err
    assert printed(capsys, "inspect", finished, "--json")["kind"] == "adapter"  # a run's journal is no data


def test_inspecting_a_file_without_the_columns_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("note,mood\nfine,good\n")
    assert "no column named text or label" in printed(capsys, "inspect", tmp_path / "a.csv", "--json")["note"]
