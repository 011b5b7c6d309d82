"""The notebook of the documents, executed cell by cell with the real model."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
_NUMBER = re.compile(r"[\d,]+")


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell wrote to standard output."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(item.get("text", "") for item in cell.outputs if item.get("name") == "stdout") for cell in cells]


@pytest.mark.soak
def test_its_ten_cells_run_and_print_what_the_document_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors round differently, so numbers may; the words are the same, and the adapter beats the raw model."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert len(notebook.cells) == 10
    shown = printed(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    ran = printed(notebook)
    assert [_NUMBER.sub("N", text) for text in ran[:3]] == [_NUMBER.sub("N", text) for text in shown[:3]]
    assert len(re.findall(r"^(?:negative|neutral|positive) \(\d+%\): ", ran[3], re.MULTILINE)) == 3
    raw, ours = map(int, re.findall(r"(?:model|adapter) (\d+)%", ran[4]))
    assert ours > raw
    assert "The federation beats the raw model" in shown[4]
    assert (tmp_path / "runs" / "notebook" / "report.html").stat().st_size > 10_000
