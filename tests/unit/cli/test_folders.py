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
    assert printed(capsys, "inspect", folder / "parts")["rows"] == 10
    asked = ("evaluate", folder / "adapter", folder / "parts", "--model", folder / "model [1]", "--json")
    assert printed(capsys, *asked)["adapter"]["examples"] == 10


def test_inspecting_a_folder_says_what_it_holds(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for part in range(2):
        tiny.write_rows(parts / f"part-{part}.jsonl", tiny.rows(5, seed=part))
    assert printed(capsys, "inspect", parts)["rows"] == 10
    (parts / "other.csv").write_text("text,label\n")
    assert run("inspect", parts) == 3
    assert "received a folder with several data files" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for folder in (finished, tmp_path / "empty"):  # a run's journal is no data
        assert run("inspect", folder) == 5
        assert "is not an adapter" in capsys.readouterr().err
