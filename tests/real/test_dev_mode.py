"""Developer mode (``python -X dev``) shows warnings that are hidden elsewhere, at the end of a process too: there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import tiny
from tests.support.run_folders import short_run
from tests.support.serving import serving

pytestmark = pytest.mark.soak
THREADS = 8


@pytest.fixture(autouse=True)
def _developer_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all processes that a test starts."""
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def test_commands_warn_of_nothing(tmp_path: Path, llama_folder: Path) -> None:
    config, out = short_run(tmp_path, llama_folder), tmp_path / "run"
    adapter, rows = str(out / "adapter"), str(tmp_path / "test.jsonl")
    tiny.write_rows(tmp_path / "own.jsonl", tiny.rows(20, seed=9))
    for words in (
        ["inspect", str(config)],
        ["run", str(config), "--out", str(out)],
        ["run", str(config), "--out", str(out), "--resume"],
        ["classify", adapter, *tiny.SENTENCES],
        ["evaluate", adapter, rows],
        ["personalise", adapter, str(tmp_path / "own.jsonl"), "--steps", "4", "--out", str(tmp_path / "own")],
        ["export", adapter, str(tmp_path / "exported")],
    ):
        done = subprocess.run([sys.executable, "-m", "ifedicl.cli", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr, (words, done.stderr)


def test_a_server_that_eight_threads_ask_warns_of_nothing_and_gives_each_its_own_answer(
    tmp_path: Path, tiny_adapters: Path
) -> None:
    names = ("mood", "place")
    with serving(tmp_path, *(str(tiny_adapters / name) for name in names)) as server:

        def ask(number: int) -> Any:
            asked = {"adapter": names[number % 2], "texts": [tiny.SENTENCES[number % 8], tiny.SENTENCES[number % 5]]}
            return httpx.post(f"{server.url}v1/classify", json=asked, timeout=60).raise_for_status().json()["results"]

        alone = [ask(number) for number in range(40)]
        with ThreadPoolExecutor(THREADS) as pool:
            together = list(pool.map(ask, [*range(40)] * 4))
        log = server.log
    assert "Warning" not in log, log
    for number, results in enumerate(together):
        for one, other in zip(results, alone[number % 40], strict=True):
            assert one["label"] == other["label"]
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
